"""The PyTorch backend, the only package that imports torch."""

import os

# CUDA's matrix products give equal bits from run to run only with a workspace of a fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
