"""Scripts for maintainers; run them from the repository root with `python -m tools.NAME`."""
