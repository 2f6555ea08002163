"""`tandem bench serve`: load on an OpenAI-compatible server at times that do not depend on its answers."""
