"""What runs in every engine rank: its rooms, its links to other ranks, and the lanes that move its KV.

`agent.RankAgent` is the whole of it, on one event loop. `threaded.ThreadedRank` runs one in a thread of its own, for
engines whose scheduler has no event loop (SGLang).
"""
