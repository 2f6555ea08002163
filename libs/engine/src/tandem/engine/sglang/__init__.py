"""SGLang as a Tandem engine, unpatched: our KV transfer backend comes in through SGLang's plugin entry point.

In the service's process: `engine.SglangEngine` (the port) over `launch` (one running SGLang) and `translate` (its
requests and answers). In every scheduler process that SGLang starts: `plugin` registers the backend, `backend` is it.
"""
