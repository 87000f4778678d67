"""Where tensors live: one contract (`base.py`), one room a framework."""
