"""Promise 18: what was trained on MLX says the same in PEFT and transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_runs import KINDS, logits_by_mlx_lm, make_runs, positions
from requirements import needs_torch

from sdpo_mlx.models.resolve import resolve
from sdpo_mlx.runs.export.formats import export_fused, export_mlx, export_peft

pytestmark = needs_torch


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_runs(tmp_path_factory.mktemp("runs"))


def causal_lm(path: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def logits(model: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.from_numpy(positions())).logits.float().numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_peft_says_what_mlx_says(runs: dict[str, Path], kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    export_peft(runs[kind], tmp_path / "peft")
    base = causal_lm(resolve("tiny").path)
    found, wanted = logits(PeftModel.from_pretrained(base, tmp_path / "peft")), logits_by_mlx_lm(runs[kind])
    assert np.abs(found - wanted).max() < 1e-3
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


def test_transformers_reads_the_fused_model(runs: dict[str, Path], tmp_path: Path) -> None:
    export_fused(runs["lora"], tmp_path / "fused")
    found = logits(causal_lm(tmp_path / "fused"))
    wanted = logits_by_mlx_lm(None, tmp_path / "fused")
    assert np.abs(found - wanted).max() < 1e-3
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("dora", [False, True])
def test_rslora_in_bfloat16_from_peft_says_here_what_it_says_there(dora: bool, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(
        r=8,
        lora_alpha=8,
        use_rslora=True,
        use_dora=dora,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    adapted = get_peft_model(causal_lm(resolve("tiny").path).to(torch.bfloat16), config, autocast_adapter_dtype=False)
    adapted.save_pretrained(tmp_path / "peft")
    export_mlx(tmp_path / "peft", "tiny", tmp_path / "mlx")
    theirs = PeftModel.from_pretrained(causal_lm(resolve("tiny").path), tmp_path / "peft")
    found, wanted = logits_by_mlx_lm(tmp_path / "mlx"), logits(theirs)
    assert np.abs(found - logits_by_mlx_lm(None)).max() > 1  # the adapter is seen
    assert np.abs(found - wanted).max() < 1e-3
