"""The host of one engine: what the prefill and decode services share. They add their proto service and their name.

`host.WorkerHost` wires it; `session` is one Session stream; `submit` reads Submit; `deltas` gathers what goes back.
"""
