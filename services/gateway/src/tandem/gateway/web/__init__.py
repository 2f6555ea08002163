"""The HTTP port: from a connection to an endpoint, and back."""
