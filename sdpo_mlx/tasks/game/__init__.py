"""Tasks of several turns."""
