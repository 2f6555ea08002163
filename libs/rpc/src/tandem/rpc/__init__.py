"""gRPC plumbing that every service shares: nothing in here knows about KV, rooms or engines."""
