"""Stand-ins for what a gateway talks to."""
