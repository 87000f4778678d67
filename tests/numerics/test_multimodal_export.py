"""A vision-language checkpoint trains its language part; an export keeps the rest byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_policies import make_samples
from vision_models import TEXT, TOWERS, write_vision_model

from sdpo_mlx.backends.mlx.fuse import fuse
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.models.safetensors_io import weight_files
from sdpo_mlx.runs.folder import RunFolder

PROMPTS = [np.arange(20) % 61]
CASES = [(architecture, original, False) for architecture in TEXT for original in (True, False)]
CASES += [("qwen3_5", False, True), ("gemma3", False, True)]


def tensors(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor's type, shape and bytes, read without any library."""
    found = {}
    for file in weight_files(folder):
        content = file.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:start]).items():
            if name != "__metadata__":
                low, high = entry["data_offsets"]
                found[name] = (entry["dtype"], entry["shape"], content[start + low : start + high])
    return found


def adapted(base: Path, folder: Path, adapter: AdapterConfig) -> RunFolder:
    """A folder with a random adapter for the base, in mlx-lm's layout."""
    from sdpo_mlx.backends.mlx.adapter import attach, to_numpy
    from sdpo_mlx.backends.mlx.mlx_lm_api import load_model

    arrays = to_numpy(attach(load_model(base)[0], adapter, 0))
    return saved(arrays, folder, adapter)


def saved(arrays: dict[str, Any], folder: Path, adapter: AdapterConfig) -> RunFolder:
    assert all(name.startswith("language_model.") for name in arrays)
    rng = np.random.default_rng(0)
    arrays = {n: (a + 0.05 * rng.standard_normal(a.shape)).astype(np.float32) for n, a in arrays.items()}
    folder.mkdir()
    keys = sorted({name.split(".", 4)[4].rpartition(".")[0] for name in arrays if ".layers." in name})
    parameters = {"rank": adapter.rank, "scale": adapter.scale, "dropout": 0.0, "keys": keys}
    run = RunFolder(folder)
    run.save_adapter(arrays, {"fine_tune_type": adapter.kind, "num_layers": -1, "lora_parameters": parameters})
    return run


def test_language_part_of_a_vision_checkpoint_learns(tmp_path: Path) -> None:
    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    base, adapter = write_vision_model(tmp_path / "base", "gemma3"), AdapterConfig(rank=4)
    policy = MLXPolicy(base, ModelConfig(name="m", adapter=adapter), TeacherConfig(), TrainConfig(learning_rate=1e-2))
    before = policy.state()["student"]
    policy.learn(make_samples(), ObjectiveConfig(), 1e-2)
    after = policy.state()["student"]
    assert all(not np.array_equal(before[name], after[name]) for name in after if name.endswith("lora_b"))
    run = saved(after, tmp_path / "run", adapter)
    assert fuse(base, run.path, tmp_path / "fused", PROMPTS, quantized=False)["lost"] < 1e-4


@pytest.mark.parametrize(("architecture", "original", "quantize"), CASES)
def test_fused_export_keeps_what_is_not_language(
    architecture: str, original: bool, quantize: bool, tmp_path: Path
) -> None:
    base = write_vision_model(tmp_path / "base", architecture, original=original, quantize=quantize)
    run = adapted(base, tmp_path / "run", AdapterConfig(rank=4))
    found = fuse(base, run.path, tmp_path / "fused", PROMPTS, quantized=False)
    assert found["lost"] < 1e-3 * found["adapter"]
    before, after = tensors(base), tensors(tmp_path / "fused")
    if not quantize:
        assert set(after) == set(before)
    kept = [name for name in before if name.startswith((TOWERS[architecture], "vision_tower"))]
    assert len(kept) == 2
    assert all(after[name] == before[name] for name in kept)
    changed = {name for name in after if name not in before or after[name] != before[name]}
    assert changed
    if not quantize:
        assert all(name.endswith(".weight") and "norm" not in name and "embed" not in name for name in changed)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "fused"))
    assert new["vision_config"] == old["vision_config"]
    assert new["image_token_id"] == 7
    assert "quantization" not in new
    assert (tmp_path / "fused" / "preprocessor_config.json").read_bytes() == b'{"size": 4}'
    index = json.loads((tmp_path / "fused" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(after)
    assert index["metadata"]["total_size"] == sum(len(content) for *_, content in after.values())


def test_quantized_language_part_stays_quantized_on_request(tmp_path: Path) -> None:
    base = write_vision_model(tmp_path / "base", "gemma3", original=False, quantize=True)
    run = adapted(base, tmp_path / "run", AdapterConfig(rank=4))
    found = fuse(base, run.path, tmp_path / "fused", PROMPTS, quantized=True)
    assert found["kind"] == "re-quantized"
    assert set(tensors(base)) == set(tensors(tmp_path / "fused"))
    assert "quantization" in json.loads((tmp_path / "fused" / "config.json").read_text())


def test_fused_checkpoint_is_the_model_with_its_adapter(tmp_path: Path) -> None:
    import mlx.core as mx

    from sdpo_mlx.backends.mlx.mlx_lm_api import load_adapters, load_model

    base = write_vision_model(tmp_path / "base", "qwen3_5")
    run = adapted(base, tmp_path / "run", AdapterConfig(rank=4))
    fuse(base, run.path, tmp_path / "fused", PROMPTS, quantized=False)
    model, _ = load_model(base)
    with_adapter = load_adapters(model, str(run.path))
    with_adapter.eval()
    again, _ = load_model(tmp_path / "fused")
    ids = mx.array(PROMPTS[0])[None]
    assert np.abs(np.array(with_adapter(ids)) - np.array(again(ids))).max() < 1e-4


def test_full_weights_are_written_beside_the_towers(tmp_path: Path) -> None:
    from sdpo_mlx.backends.mlx.mlx_lm_api import load_model

    base = write_vision_model(tmp_path / "base", "qwen3_5")
    run = adapted(base, tmp_path / "run", AdapterConfig(kind="full"))
    found = fuse(base, run.path, tmp_path / "fused", PROMPTS, quantized=False)
    assert found["lost"] < 1e-6
    after = tensors(tmp_path / "fused")
    kept = {name: entry for name, entry in tensors(base).items() if "visual" in name}
    assert kept.items() <= after.items()
    load_model(tmp_path / "fused")
