"""Before any test: the BLAS that users get, whichever test imports mlx first."""

from sdpo_mlx.backends.mlx.blas import load_blas

load_blas()
