"""The mock engine: real KV bytes, real transfers, no model.

What decode emits is a function of every byte that was granted to it, so a page that is wrong, stale, zero or in the
wrong place shows in the answer. The main path: `engine` (the port) -> `legs` (one per room) -> `prefill` or `decode`
(the schedulers) -> `memory` and `arithmetic` (the bytes) -> `answer` (the text).
"""
