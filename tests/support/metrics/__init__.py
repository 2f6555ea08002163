"""Reading what services tell Prometheus, and what is asked of it."""
