"""Containment for model-written programs: `base.py` says what is promised, one file a mechanism."""
