"""The self-test's core before a run, on a CPU that claims to be a GPU: it passes once, and stops a wrong gradient."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

from sdpo_mlx.backends import gradient_check
from sdpo_mlx.backends.mlx import policy as policy_module
from sdpo_mlx.backends.mlx.policy import MLXPolicy
from sdpo_mlx.backends.mlx.self_test import core, models
from sdpo_mlx.backends.mlx.self_test.models import TestModel
from sdpo_mlx.core.errors import SelfTestError
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.reduced import reduced

SHAPES = json.loads((files("sdpo_mlx") / "assets" / "shapes.json").read_text(encoding="utf-8"))
MODEL = TestModel("attention", 64, "float32")


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and two lengths of prompts."""
    monkeypatch.setenv("SDPO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(core, "SEGMENTS", (2, 9))
    return tmp_path / "home"


@pytest.fixture
def on_gpu(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(policy_module, "device_name", lambda: "gpu")
    return home


def test_cpu_is_compared_with_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with models.opened(MODEL) as policy:
        monkeypatch.setattr(core, "reduced", lambda _: pytest.fail("computed"))
        assert core.check(policy) == ()
    assert not home.exists()


def test_pass_is_remembered_until_something_changes(on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    real = core.gaps

    def counted(*arguments: Any) -> Any:
        for tokens, gap in real(*arguments):
            compared.append(tokens)
            yield tokens, gap

    monkeypatch.setattr(core, "gaps", counted)
    with models.opened(MODEL) as policy:
        assert core.check(policy) == core.check(policy) == ()
        assert compared == [2, 9]
        (kept,) = (on_gpu / core.KIND).iterdir()
        assert json.loads(kept.read_text())["gradient"] == {"float32": 0.0}  # a CPU against itself
        kept.write_text("[")
        assert core.check(policy) == ()  # a broken file is none
        monkeypatch.setattr(core, "machine", lambda: ["another machine"])
        assert core.check(policy) == ()
    assert compared == [2, 9] * 3


def test_cache_that_cannot_be_written_stops_nothing(on_gpu: Path) -> None:
    on_gpu.write_text("a file", encoding="ascii")
    with models.opened(MODEL) as policy:
        assert core.check(policy) == ()


@pytest.mark.parametrize("factor", [1.05, 0.0, float("nan")])
def test_wrong_gradient_stops_the_start(on_gpu: Path, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    real = gradient_check.gradient
    with models.opened(MODEL) as policy:
        calls: list[MLXPolicy] = []

        def wrong(learner: Any, pairs: Any) -> Any:
            calls.append(learner)
            grads = real(learner, pairs)
            return grads if learner is calls[0] else {name: factor * array for name, array in grads.items()}

        monkeypatch.setattr(gradient_check, "gradient", wrong)  # the first asked is the CPU's
        with pytest.raises(SelfTestError, match=r"gradient after a prompt of 2 tokens in float32 differs"):
            policy.check_gradient(slope=False)
    assert not (on_gpu / core.KIND).exists()


def test_device_that_raises_stops_the_start(on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> Any:
        raise ValueError("the vector kernels do not produce a logsumexp")

    monkeypatch.setattr(core, "gaps", raises)
    with models.opened(MODEL) as policy, pytest.raises(SelfTestError, match=r"fails: the vector kernels") as error:
        core.check(policy)
    assert error.value.exit_code == 9


def test_architecture_without_a_small_model_is_named_and_trains(on_gpu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise KeyError("size")

    monkeypatch.setattr(core, "write", refuses)
    with models.opened(MODEL) as policy:
        assert core.check(policy) == (core.UNKNOWN,)


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_reduced_configuration_keeps_kinds_head_widths_and_ratios(name: str) -> None:
    whole, small = (ModelDims.of(config, name) for config in (SHAPES[name], reduced(SHAPES[name])))
    assert small.head_width == whole.head_width
    assert small.heads / small.kv_heads == whole.heads // whole.kv_heads
    assert {(each.kind, bool(each.window)) for each in small.layer} == {
        (each.kind, bool(each.window)) for each in whole.layer
    }
    assert (small.quantization.bits, small.quantization.group) == (whole.quantization.bits, whole.quantization.group)
    assert small.parameters < 50e6


@pytest.mark.parametrize("name", ["gpt-oss-20b", pytest.param("Qwen3.5-0.8B", marks=pytest.mark.slow)])
def test_published_architectures_have_a_small_model(name: str, on_gpu: Path, tmp_path: Path) -> None:
    config = reduced(next(shape for key, shape in SHAPES.items() if name in key))
    models.write(tmp_path, config)
    assert core.check(models.open_folder(tmp_path, "float32")) == ()
