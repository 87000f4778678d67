"""What torch would run on, for `sdpo doctor`."""

from __future__ import annotations

import torch

from sdpo_mlx.backends.torch.loading import device_of


def device_line() -> str:
    """The device that `--backend torch` would take, and its card."""
    device = device_of("auto")
    card = f" ({torch.cuda.get_device_name()})" if device.type == "cuda" else ""
    return f"torch {torch.__version__} on {device.type}{card}"
