"""Pairs of rank agents for tests."""
