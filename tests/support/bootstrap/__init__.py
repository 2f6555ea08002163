"""Workers for tests of membership, and a bootstrap process to register them with."""
