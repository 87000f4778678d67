"""User-defined tasks."""
