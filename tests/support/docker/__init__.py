"""A Docker engine and the compose project, as the tests use them."""
