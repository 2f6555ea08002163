"""The bootstrap service: the registry of workers, and the source of truth on membership.

The decisions are in tandem.core.registry. Here: `servicer` turns messages into calls, `store` keeps
the registry with its clock and its watchers, `app` builds and runs it all.
"""
