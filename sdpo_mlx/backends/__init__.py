"""Backends: the model, its adapters and the optimizer, on MLX or PyTorch, behind one contract (`base.py`)."""
