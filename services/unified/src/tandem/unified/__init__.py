"""The unified service."""
