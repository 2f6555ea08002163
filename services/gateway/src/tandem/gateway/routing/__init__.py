"""From a sequence to the workers that answer it: who may take it, who is chosen, and what happens where they fail."""
