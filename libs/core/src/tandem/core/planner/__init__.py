"""Which workers a cluster should have: what load tells, and when it is worth a change. Pure."""
