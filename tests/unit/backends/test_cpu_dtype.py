"""`model.dtype: auto` with torch on a CPU: bfloat16 where it is fast and agrees with float32, and kept by the run."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from requirements import needs_torch
from temp_folders import new_folder
from torch_architectures import write_architecture

from sdpo_mlx import api
from sdpo_mlx.config import ModelConfig, TeacherConfig, TrainConfig
from sdpo_mlx.models.resolve import EMBEDDED, resolve
from sdpo_mlx.runs.folder import RunFolder

pytestmark = needs_torch


@cache
def saved(name: str, dtype: str) -> Path:
    import torch
    from transformers import AutoModelForCausalLM

    place = write_architecture(new_folder("cpu-dtype") / name, name)
    whole = AutoModelForCausalLM.from_pretrained(place, dtype=getattr(torch, dtype))
    whole.save_pretrained(place)
    return place


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bfloat16=True)


def processor(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    from sdpo_mlx.backends.torch import cpu_dtype

    monkeypatch.setattr(cpu_dtype, "multiplies_bfloat16", lambda: bfloat16)


def opened(path: Path, **options: Any) -> Any:
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    model = ModelConfig(name="m", backend="torch", device="cpu", **options)
    return TorchPolicy(path, model, TeacherConfig(), TrainConfig())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_weights_stored_in_bfloat16_stay_so_under_a_float32_adapter(kind: str) -> None:
    policy = opened(saved("llama", "bfloat16"), adapter={"kind": kind})
    assert (policy.info.dtype, policy.warnings()) == ("bfloat16", ())
    assert {str(each.dtype) for each in (*policy.student.values(), *policy.teacher.values())} == {"torch.float32"}
    policy.check_gradient()


@pytest.mark.parametrize(
    ("stored", "options"),
    [
        ("float32", {}),
        ("float16", {}),
        ("bfloat16", {"adapter": {"kind": "full"}}),
        ("bfloat16", {"dtype": "float32"}),
    ],
)
def test_other_weights_are_float32(stored: str, options: dict[str, Any]) -> None:
    assert opened(saved("llama", stored), **options).info.dtype == "float32"


def test_embedded_model_is_float32() -> None:
    assert opened(resolve(EMBEDDED).path).info.dtype == "float32"


def test_processor_without_bfloat16_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, bfloat16=False)
    assert opened(saved("llama", "bfloat16")).info.dtype == "float32"


def test_processor_that_torch_cannot_describe_takes_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.undo()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert opened(saved("llama", "bfloat16")).info.dtype == "float32"


def test_model_that_disagrees_is_converted_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import cpu_dtype

    monkeypatch.setattr(cpu_dtype, "LARGEST_KL", 0.0)
    policy = opened(saved("llama", "bfloat16"))
    assert policy.info.dtype == "float32"
    assert [line.partition(":")[0] for line in policy.warnings()] == ["the weights are converted to float32"]


def test_model_whose_comparison_fails_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import cpu_dtype

    def fails(_: object) -> float:
        raise RuntimeError("expected\nfloat")

    monkeypatch.setattr(cpu_dtype, "divergence", fails)
    policy = opened(saved("llama", "bfloat16"))
    assert policy.info.dtype == "float32"
    assert policy.warnings()[-1].endswith("fails: expected float")


@pytest.mark.parametrize("name", ["llama", "gemma2", "qwen3_moe", "qwen3_5_text", "deepseek_v3", "mamba"])
def test_comparison_runs_the_model_that_float32_loads_and_restores_it(name: str) -> None:
    import torch

    from sdpo_mlx.backends.torch import cpu_dtype, loading

    place, ids = saved(name, "bfloat16"), torch.arange(1, 25)[None]
    exact, whole = (
        loading.load(place, ModelConfig(backend="torch", device="cpu", dtype=dtype)).model.whole
        for dtype in ("float32", "bfloat16")
    )
    before = {key: each.clone() for key, each in whole.state_dict().items()}
    with torch.no_grad(), cpu_dtype._in_float32(whole):
        logits = whole(input_ids=ids, use_cache=False).logits
    with torch.no_grad():
        assert torch.allclose(logits, exact(input_ids=ids, use_cache=False).logits, atol=1e-4)
    after = whole.state_dict()
    assert all(torch.equal(each, after[key]) and each.dtype == after[key].dtype for key, each in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in whole.modules())


@pytest.mark.parametrize("began", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_run_keeps_its_type_on_another_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, began: bool
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = Path(shutil.copytree(resolve(EMBEDDED).path, tmp_path / "base"))
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    small = {"rollout.problems_per_step": 1, "rollout.group_size": 2, "rollout.max_tokens": 4, "eval.problems": 1}
    small |= {
        "eval.samples": 1,
        "model.device": "cpu",
        "train.eval_every": 0,
        "log.teacher_answers": 0,
        "train.probe": False,
    }
    out = tmp_path / "run"
    for steps in (1, 2):
        processor(monkeypatch, bfloat16=began == (steps == 1))
        run = api.train(str(base), "tiny", out=out, backend="torch", steps=steps, settings=small, progress=False)
        policy = RunFolder(out).read_manifest()["policy"]
        assert policy["dtype"] == ("bfloat16" if began else "float32")
    assert [each["type"] for each in run.events].count("resumed") == 1
    assert run.config.model.dtype == "auto"
    assert not [each for each in run.events if "resumes in" in str(each.get("message"))]
    assert run._opened().policy.info.dtype == policy["dtype"]
    run.close()
