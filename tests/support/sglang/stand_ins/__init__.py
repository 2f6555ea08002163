"""What stands in for parts of SGLang in the processes of a test; see sitecustomize.py."""
