"""The PyTorch backend, the only package that imports torch."""

import logging
import os

# CUDA's matrix products give equal bits from run to run only with a workspace of a fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Threads that wait for each other in a loop take the processor from those that compute: on a busy machine generation
# took 60 s and more in place of 0.3. Sleeping ones do not, and the number of threads (thus every bit) stays the same.
# The OpenMP runtime reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# peft imports bitsandbytes whether a run uses it or not, and that warns of an optional kernel for processors.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
