"""Faults on real processes: what is struck, how, when, and what became of the requests. `cells` is where to begin."""
