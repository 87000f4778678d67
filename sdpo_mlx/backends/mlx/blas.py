"""Loads a fast BLAS for MLX's Linux CPU wheel, which otherwise multiplies at 4 GFLOP/s.

The wheel calls `cblas_sgemm`; whichever library exports it first, before the first `import mlx.core`, wins.
Nothing happens on macOS, where MLX brings its own.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from pathlib import Path

SYSTEM_LIBRARIES = ("libopenblas.so.0", "libblis.so.4")


@cache
def load_blas() -> str:
    """Load the fastest BLAS found and return its name (`reference` if there is none, `system` except on Linux).

    Must run before the first `import mlx.core`. Two threads' worth of speed needs MKL's GNU layer.
    """
    if sys.platform != "linux":
        return "system"
    # Keeps bits equal between processors and alignments, for resumes that must be exact.
    os.environ.setdefault("MKL_CBWR", "AVX2")
    os.environ.setdefault("MKL_THREADING_LAYER", "GNU")
    # As for torch: threads that wait in a loop starve those that compute, on a machine that others use too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for library in (*map(str, sorted(Path(sys.prefix, "lib").glob("libmkl_rt.so*"))), *SYSTEM_LIBRARIES):
        try:
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return Path(library).name
    return "reference"


def blas_threads(library: str) -> int | None:
    """Return the number of threads that a loaded BLAS reports; None if it reports none."""
    functions = {"libmkl": "MKL_Get_Max_Threads", "libopenblas": "openblas_get_num_threads"}
    name = next((name for start, name in functions.items() if library.startswith(start)), "")
    try:
        return int(getattr(ctypes.CDLL(None), name)()) if name else None
    except (OSError, AttributeError):
        return None
