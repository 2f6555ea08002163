"""Clusters for tests of policies."""
