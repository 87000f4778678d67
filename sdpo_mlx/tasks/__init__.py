"""Environments: one file a task family, found by name in `registry.py`."""
