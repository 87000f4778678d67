"""`sdpo train` on small random models of architectures that learn by body and head: train, resume, export, load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import sdpo
from mlx_architectures import write_architecture
from paths import ROOT

from sdpo_mlx.runs.events import read_events

TINY = ROOT / "sdpo_mlx" / "assets" / "tiny"
RUN = ("--task", "tiny", "--max-tokens", "8", "--group-size", "2", "--plain", "--set", "rollout.problems_per_step=1")
RUN = (*RUN, "--set", "eval.problems=2", "--set", "model.adapter.rank=2", "--set", "train.save_every=1")


def base(folder: Path, name: str) -> Path:
    """A random model with the tokenizer of the embedded one."""
    rows = json.loads((TINY / "config.json").read_text())["vocab_size"]
    write_architecture(folder, name, rows)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / file, folder / file)
    return folder


@pytest.mark.parametrize(
    "name", ["gpt_oss", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_5", "gemma4", "lfm2"))]
)
def test_model_is_trained_resumed_exported_and_loaded(name: str, tmp_path: Path) -> None:
    from sdpo_mlx.backends.mlx.mlx_lm_api import load_adapters, load_model

    import mlx.core as mx  # isort: skip

    model, run = base(tmp_path / "base", name), tmp_path / "run"
    for steps, out in (("2", run), ("3", run), ("3", tmp_path / "uninterrupted")):
        code, _, err = sdpo("train", "--model", str(model), *RUN, "--steps", steps, "--out", str(out))
        assert code == 0, err
    resumed, uninterrupted = (f / "adapters.safetensors" for f in (run, tmp_path / "uninterrupted"))
    assert resumed.read_bytes() == uninterrupted.read_bytes()
    events = list(read_events(run / "events.jsonl"))
    assert [e["step"] for e in events if e["type"] == "step"] == [1, 2, 3]
    assert [e["type"] for e in events].count("resumed") == 1
    code, _, err = sdpo("export", str(run), "--to", "fused", "--out", str(tmp_path / "fused"))
    assert code == 0, err
    ids = mx.array(np.arange(20)[None] % 60)
    fused, _ = load_model(tmp_path / "fused")
    adapted, _ = load_model(model)
    adapted = load_adapters(adapted, str(run))
    assert float(mx.max(mx.abs(fused(ids) - adapted(ids)))) < 1e-4
