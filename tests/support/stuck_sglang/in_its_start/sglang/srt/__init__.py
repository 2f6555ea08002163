"""Stands in for SGLang's package of this name."""
