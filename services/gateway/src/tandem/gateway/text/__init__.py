"""Text and token ids; what a model says, taken apart."""
