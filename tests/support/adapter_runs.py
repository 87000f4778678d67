"""Short runs with adapters of each kind, and the logits of a model with such an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from small_runs import settings, trained

from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.runs.folder import RunFolder

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora", "rank": 8, "scale": 2.0},
    "dora": {"kind": "dora", "rank": 4, "scale": 1.5},
    "last block": {"kind": "lora", "rank": 4, "layers": 1, "keys": ["self_attn.q_proj", "mlp.down_proj"]},
}
LEARNS = {"steps": 1, "eval_every": 0, "learning_rate": 2e-2}
SHORT = {"group_size": 2, "max_tokens": 8}


def make_runs(folder: Path) -> dict[str, Path]:
    """A short run of each kind; its last student is its adapter, so that there is something to export."""
    made = {}
    for name, adapter in KINDS.items():
        made[name] = folder / name.replace(" ", "-")
        cfg = settings(model={"name": "tiny", "adapter": adapter}, rollout=SHORT, train=LEARNS)
        trained(made[name], cfg)
        RunFolder(made[name]).write_config(cfg)
        stir(made[name])
    return made


def stir(run: Path) -> None:
    """Make the adapter's part in the answers large enough to be seen."""
    folder = RunFolder(run)
    arrays, config = folder.load_adapter()
    rng = np.random.default_rng(0)
    moved = {n: (a + 0.05 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in arrays.items()}
    folder.save_adapter(moved, config)


def logits_by_mlx_lm(adapter: Path | None, base: Path | None = None) -> Any:
    import sdpo_mlx.backends.mlx.mlx_lm_api  # noqa: F401  loads the BLAS first, and mlx-lm without torch
    import mlx.core as mx  # isort: skip
    from mlx_lm.tuner.utils import load_adapters  # isort: skip
    from mlx_lm.utils import load_model  # isort: skip

    model, _ = load_model(base or resolve("tiny").path)
    model.set_dtype(mx.float32)
    if adapter is not None:
        model = load_adapters(model, str(adapter))
        model.eval()
    return np.array(model(mx.array(positions())).astype(mx.float32))


def positions() -> Any:
    """200 positions that are no prompt of the task."""
    return np.random.default_rng(3).integers(4, 600, size=(4, 50))
