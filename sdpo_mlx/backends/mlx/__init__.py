"""The MLX backend; the only room that imports mlx. Importing it loads a fast BLAS first, where one is needed."""

from sdpo_mlx.backends.mlx.blas import load_blas

BLAS = load_blas()
