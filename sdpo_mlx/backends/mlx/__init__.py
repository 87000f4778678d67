"""The MLX backend, the only package that imports mlx. Importing it first loads a fast BLAS if one is needed."""

import os

from sdpo_mlx.backends.mlx.blas import load_blas

# transformers, which mlx-lm uses for tokenizers alone, would tell every user that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

BLAS = load_blas()
