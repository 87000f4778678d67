"""A base quantized in any form that mlx-lm loads is trained, and its adapter exported and fused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import CONFIGS, write_config
from small_policies import make_samples, stir

from sdpo_mlx.backends.mlx.fuse import fuse
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.models.peft_layout import to_peft
from sdpo_mlx.runs.folder import RunFolder


def some_layers_more(path: str, _: Any) -> Any:
    return {"group_size": 64, "bits": 8} if "down_proj" in path else "v_proj" not in path


FORMS: Mapping[str, dict[str, Any]] = {
    **{f"affine-{bits}": {"bits": bits} for bits in (2, 3, 4, 5, 6, 8)},
    "mixed": {"quant_predicate": some_layers_more},
    "mxfp4": {"mode": "mxfp4"},
    "nvfp4": {"mode": "nvfp4", "group_size": 16},
    "nvfp4-scaled": {"mode": "nvfp4", "group_size": 16, "global_scale": True},
    "mxfp8": {"mode": "mxfp8", "bits": 8},
}
WIDE = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16, "num_hidden_layers": 2}
CASES = [
    *(("qwen3", form) for form in FORMS),
    ("qwen3_moe", "mxfp4"),
    # mlx 0.32: the scale of a whole tensor of experts is for the GPU only.
    *(
        pytest.param("qwen3_moe", form, marks=pytest.mark.slow)
        for form in FORMS
        if form not in ("mxfp4", "nvfp4-scaled")
    ),
]


@pytest.mark.parametrize(("architecture", "form"), CASES)
def test_quantized_base_learns_and_its_adapter_is_exported(architecture: str, form: str, tmp_path: Path) -> None:
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    config = {**CONFIGS[architecture], **WIDE}
    if "num_experts" in config:
        config["moe_intermediate_size"] = 64
    base = write_config(tmp_path / "base", config, quantize=FORMS[form])
    assert "quantization" in json.loads((base / "config.json").read_text())
    adapter = AdapterConfig(rank=4)
    policy = MLXPolicy(base, ModelConfig(name="m", adapter=adapter), TeacherConfig(), TrainConfig(learning_rate=1e-2))
    before = policy.state()["student"]
    update = policy.learn(make_samples(), ObjectiveConfig(), 1e-2)
    after = policy.state()["student"]
    assert np.isfinite(update.loss)
    assert all(not np.array_equal(before[name], after[name]) for name in after if name.endswith("lora_b"))

    stir(policy)
    run = RunFolder(tmp_path / "run")
    keys = sorted({name.split(".", 3)[3].rpartition(".")[0] for name in after})
    parameters = {"rank": 4, "scale": adapter.scale, "dropout": 0.0, "keys": keys}
    layout = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    run.path.mkdir()
    run.save_adapter(policy.state()["student"], layout)
    prompts = [np.arange(20) % 61, np.arange(9) * 7 % 61]
    plain = fuse(base, run.path, tmp_path / "plain", prompts, quantized=False)
    again = fuse(base, run.path, tmp_path / "again", prompts, quantized=True)
    assert (plain["kind"], again["kind"]) == ("dequantized", "re-quantized")
    assert plain["adapter"] > 0.01
    # Dequantized mxfp4, nvfp4 and mxfp8 weights are bfloat16, whose rounding can choose another expert.
    assert plain["lost"] < (2e-3 if architecture == "qwen3" else 0.1) * plain["adapter"]
    assert plain["lost"] < again["lost"]
    for folder, quantized in (("plain", False), ("again", True)):
        content = json.loads((tmp_path / folder / "config.json").read_text())
        assert ("quantization" in content) is quantized
    if architecture == "qwen3":
        assert len(to_peft(*run.load_adapter(), "base")[0]) == len(after)
