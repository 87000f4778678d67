"""SDPO on MLX: train a language model on your task from feedback. `docs/python.md` describes this API."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if sys.platform == "darwin":
    # Read when the process first uses the GPU, so it is set before MLX can be imported: otherwise macOS ends long GPU
    # work while a display is on (mlx 3267). A value that the user has set stays.
    os.environ.setdefault("AGX_RELAX_CDM_CTXSTORE_TIMEOUT", "1")

if TYPE_CHECKING:
    from sdpo_mlx.api import Run, load_run, train
    from sdpo_mlx.tasks.base import Task
    from sdpo_mlx.types import Feedback, Problem

__all__ = ["Feedback", "Problem", "Run", "Task", "__version__", "load_run", "train"]

# Loaded on first use, so that importing the package loads neither numpy nor a backend.
_MODULES = {
    "Feedback": "sdpo_mlx.types",
    "Problem": "sdpo_mlx.types",
    "Run": "sdpo_mlx.api",
    "Task": "sdpo_mlx.tasks.base",
    "load_run": "sdpo_mlx.api",
    "train": "sdpo_mlx.api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sdpo_mlx' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
