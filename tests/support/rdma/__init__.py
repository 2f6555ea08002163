"""Helpers of the data path's tests: pools, and a sender in this or in another process."""
