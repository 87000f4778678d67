"""The PyTorch backend, the only package that imports torch."""

import logging
import os
import sys
from importlib.util import find_spec

from sdpo_mlx.core import gpu

# CUDA's matrix products give equal bits from run to run only with a workspace of a fixed size.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Threads that wait for each other in a loop take the processor from those that compute: on a busy machine generation
# took 60 s and more in place of 0.3. Sleeping ones do not, and the number of threads (thus every bit) stays the same.
# The OpenMP runtime reads it when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# peft imports bitsandbytes whether a run uses it or not, and that warns of an optional kernel for processors.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# Rollouts and passes of changing lengths fill the card with blocks that fit nothing else; segments that grow do not.
if (setting := gpu.allocator_setting()) and not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    os.environ[setting] = "expandable_segments:True"
# On some processors bitsandbytes (0.50) fetches a kernel from the hub when it is imported, and runs it.
if find_spec("bitsandbytes") is not None and "bitsandbytes" not in sys.modules:
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]  # its import fails, as if it was not installed
    try:
        import bitsandbytes  # noqa: F401
    finally:
        if sys.modules["kernels"] is None:
            del sys.modules["kernels"]
