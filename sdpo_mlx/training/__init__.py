"""A whole training run."""
