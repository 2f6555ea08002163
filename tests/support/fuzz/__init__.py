"""Mutated requests and messages for a running system, and what it has to be like afterwards."""
