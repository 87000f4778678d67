"""Promise 18: what was trained on MLX says the same in PEFT and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[torch]'")
pytest.importorskip("peft", reason="peft is not installed: pip install -e '.[torch]'")
pytest.importorskip("mlx.core")

import torch
from adapter_runs import KINDS, logits_by_mlx_lm, make_runs, positions
from peft import PeftModel
from transformers import AutoModelForCausalLM

from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.runs.export.formats import export_fused, export_peft


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(positions())).logits.float().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_says_what_mlx_says(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    export_peft(runs[kind], tmp_path / "peft")
    base = AutoModelForCausalLM.from_pretrained(resolve("tiny").path, dtype=torch.float32)
    found, wanted = logits(PeftModel.from_pretrained(base, tmp_path / "peft")), logits_by_mlx_lm(runs[kind])
    assert np.abs(found - wanted).max() < 1e-3
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


def test_transformers_reads_the_fused_model(runs: dict[str, Path], tmp_path: Path) -> None:
    export_fused(runs["lora"], tmp_path / "fused")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "fused", dtype=torch.float32))
    wanted = logits_by_mlx_lm(None, tmp_path / "fused")
    assert np.abs(found - wanted).max() < 1e-3
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))
