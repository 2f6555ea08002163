"""Support for tests of the mock engine and for tests that run on it."""
