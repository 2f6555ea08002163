"""All four services in this process, and a collector."""
