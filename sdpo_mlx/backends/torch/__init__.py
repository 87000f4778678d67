"""The PyTorch backend, the only package that imports torch."""

import logging
import os

# CUDA's matrix products give equal bits from run to run only with a workspace of a fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# peft imports bitsandbytes whether a run uses it or not, and that warns of an optional kernel for processors.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
