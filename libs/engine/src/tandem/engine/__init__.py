"""Engines behind one port (`tandem.engine.port`), and the worker that hosts one.

`rank` runs in every engine rank: it owns the rank's rooms and links. `hub` is the service's side of its ranks.
`worker` is the host that the prefill and decode services share. `mock` and `sglang` are the adapters.
"""
