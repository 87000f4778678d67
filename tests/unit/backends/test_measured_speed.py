"""Times of `sdpo plan` from speeds that the self-test kept: what they follow, and which are not used."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import ROOT
from sdpo_cli.commands.plan import as_lines, planned

from sdpo_mlx.backends import measured_speed
from sdpo_mlx.backends.measured_speed import LayerSpeed, MeasuredSpeed
from sdpo_mlx.backends.memory_plan import work_of
from sdpo_mlx.backends.step_time import Machine, times
from sdpo_mlx.config import Config
from sdpo_mlx.models.dimensions import ModelDims

pytest.importorskip("mlx.core")

from sdpo_mlx.backends.mlx import device
from sdpo_mlx.backends.mlx.self_test import speed

SHAPES = json.loads((ROOT / "sdpo_mlx/assets/shapes.json").read_text(encoding="utf-8"))
SMOLLM2 = ModelDims.of(SHAPES["smollm2"], "smollm2")
QUANTIZED = ModelDims.of(SHAPES["mlx-community/Qwen3-4B-Instruct-2507-4bit"], "qwen")


def layer_speed(weights: float, rate: float) -> LayerSpeed:
    return LayerSpeed(weights, rate, rate, rate, {1: rate / 20, 8: rate / 4, 32: rate / 2, 64: rate / 2})


def fast(factor: float = 1.0) -> MeasuredSpeed:
    """A machine whose larger layers reach more FLOP/s."""
    layers = (layer_speed(2e5, 1e10 * factor), layer_speed(7e6, 1e11 * factor))
    slower = tuple(replace(each, prefill=each.prefill / 2) for each in layers)
    return MeasuredSpeed("2026-01-02", 4, layers, slower, sampling=1e8 * factor)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, and rates that take no time to measure."""
    monkeypatch.setenv("SDPO_HOME", str(tmp_path))
    monkeypatch.setattr(device, "block_gigaflops", lambda: 100.0)
    monkeypatch.setattr(device, "gigabytes", lambda: 10.0)
    return tmp_path


def plan() -> dict[str, Any]:
    return planned(Config.model_validate({"model": {"name": "smollm2"}, "train": {"memory_gb": 64.0}}), None, 300)


def test_plan_uses_what_was_measured_and_says_when(home: Path) -> None:
    before = plan()
    assert before["speed"] == {"source": "estimated", "date": None}
    assert "estimated; `sdpo doctor --self-test` measures this machine" in "\n".join(as_lines(before))
    measured_speed.keep(fast(), speed.depends_on())
    after = plan()
    assert after["speed"] == {"source": "measured", "date": "2026-01-02"}
    assert "measured on this machine on 2026-01-02" in "\n".join(as_lines(after))
    assert after["seconds"]["total"] != before["seconds"]["total"]
    measured_speed.keep(fast(2.0), speed.depends_on())
    assert plan()["seconds"]["total"] == pytest.approx(after["seconds"]["total"] / 2)


@pytest.mark.parametrize("changed", range(6))
def test_speed_of_another_device_or_version_is_not_used(changed: int, home: Path) -> None:
    other = list(speed.depends_on())
    other[changed] += " other"  # device, chip, system, mlx, mlx-lm, sdpo-mlx
    measured_speed.keep(fast(), other)
    assert speed.measured() is None
    assert plan()["speed"]["source"] == "estimated"


BROKEN = [
    {"format": 0},
    {"date": "yesterday"},
    {"date": 7},
    {"width": 0},
    {"sampling": 0.0},
    {"sampling": math.nan},
    {"plain": []},
    {"quantized": 3},
    {"plain": [{"weights": 1.0}]},
    {"plain": [{"weights": -1.0, "prefill": 1.0, "teacher": 1.0, "learn": 1.0, "decode": {"1": 1.0}}]},
    {"plain": [{"weights": 1.0, "prefill": 1.0, "teacher": 1.0, "learn": 1.0, "decode": {"0": 1.0}}]},
    {"plain": [{"weights": 1.0, "prefill": 1.0, "teacher": 1.0, "learn": 1.0, "decode": {}}]},
    {"plain": [{"weights": 1.0, "prefill": "fast", "teacher": 1.0, "learn": 1.0, "decode": {"1": 1.0}}]},
]


@pytest.mark.parametrize("change", BROKEN)
def test_speed_that_is_damaged_or_of_an_older_format_is_none(change: dict[str, Any], home: Path) -> None:
    measured_speed.keep(fast(), speed.depends_on())
    assert speed.measured() == fast()
    (file,) = (home / measured_speed.KIND).iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert speed.measured() is None


@pytest.mark.parametrize("content", ["", "[", "[]", "null", '{"format": 1}', "\x00" * 50])
def test_damaged_cache_leaves_the_estimate_without_a_traceback(content: str, home: Path) -> None:
    measured_speed.keep(fast(), speed.depends_on())
    (file,) = (home / measured_speed.KIND).iterdir()
    file.write_text(content)
    code, out, err = sdpo("plan", "--model", "smollm2", "--prompt-tokens", "300", "--set", "train.memory_gb=64")
    assert code == 0
    assert "estimated; `sdpo doctor --self-test`" in out
    assert err == ""


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 2_000), st.integers(1, 1_000), st.integers(1, 16), st.integers(1, 32), st.sampled_from("pagd"))
def test_times_grow_with_prompt_rollout_and_rows(
    prompt: int, answer: int, group: int, problems: int, what: str
) -> None:
    for shape in (SMOLLM2, QUANTIZED):
        rollout = {"max_tokens": answer, "group_size": group, "problems_per_step": problems, "concurrency": 1_024}
        work = work_of(Config.model_validate({"rollout": rollout}), prompt, prompt + 100, 4)
        more = {
            "p": replace(work, prompt=prompt + 7),
            "a": replace(work, answer=answer + 7),
            "g": replace(work, group=group + 3),
            "d": replace(work, problems=problems + 3),
        }[what]
        less, larger = times(shape, work, fast()), times(shape, more, fast())
        assert larger.decode >= less.decode
        assert larger.total > less.total
        assert all(seconds > 0 for seconds in vars(less).values())


@pytest.mark.parametrize("shape", [SMOLLM2, QUANTIZED])
def test_token_of_more_rows_takes_no_less_even_if_it_was_measured_so(shape: ModelDims) -> None:
    odd = replace(fast().plain[0], decode={1: 1e8, 8: 1e11, 32: 2e9, 64: 1e12})
    noisy = replace(fast(), plain=(odd, replace(odd, weights=7e6)), quantized=(odd,))
    seconds = [noisy.token(shape, rows, 0.0, 4) for rows in range(1, 200)]
    assert seconds == sorted(seconds)
    assert fast().token(shape, 256, 0.0, 4) > 1.9 * fast().token(shape, 128, 0.0, 4)


def test_layer_between_two_that_were_measured_has_a_time_between_theirs() -> None:
    found = fast()
    for small, large in zip(found.plain, found.plain[1:], strict=False):
        shape = replace(SMOLLM2, layers=1, layer=SMOLLM2.layer[:1])
        weights = shape.active_parameters
        assert small.weights < weights < large.weights
        seconds = found.prefill(shape, 2.0 * weights)
        assert 2 * small.weights / small.prefill < seconds < 2 * large.weights / large.prefill


def test_models_of_the_measured_sizes_get_the_measured_rates() -> None:
    model = speed.Model(2, 768, "plain", speed.CPU)
    shape = model.shape
    known = layer_speed(shape.active_parameters / shape.layers, 3e10)
    found = replace(fast(), plain=(fast().plain[0], known))
    assert found.prefill(shape, 6e10) == pytest.approx(2.0)
    assert found.learn(shape, 3e10) == pytest.approx(1.0)
    products = 2 * 64 * shape.active_parameters / known.decode[64]
    assert found.token(shape, 64, 0.0, 4) == pytest.approx(products, rel=0.2)  # the head and sampling besides


def test_small_layers_are_slower_than_two_rates_say_and_experts_read_more_with_more_rows() -> None:
    experts = next(ModelDims.of(config, name) for name, config in SHAPES.items() if "gpt-oss-20b" in name)
    found = replace(fast(), quantized=fast().plain)
    assert experts.trunk_parameters > 3 * experts.active_parameters
    dense = replace(experts, experts=0, experts_used=0, layer=QUANTIZED.layer[:1] * experts.layers)
    for shape in (experts, dense):
        assert found.token(shape, 8, 0.0, 4) >= found.token(shape, 1, 0.0, 4)
    one, all_rows = (found.token(experts, rows, 0.0, 4) for rows in (1, 64))
    assert all_rows > 3 * one
    narrow = replace(SMOLLM2, layers=1, layer=(replace(SMOLLM2.layer[0], linears=(("w", 100, 100, 1),)),))
    assert found.prefill(narrow, 2e4) > Machine(1e11, 1e10).prefill(narrow, 2e4)


def test_self_test_measures_and_keeps_speeds(home: Path) -> None:
    small = speed.Sizes(((1, 128, 1), (2, 128, 1)), prompt=12, answer=2)
    lines = dict(speed.measure(small))
    assert {
        f"{kind}, {phase}" for kind in ("float32", "4-bit") for phase in ("prefill", "learning", "decode, 64 rows")
    } <= set(lines)
    assert all(rate > 0 for rate in lines.values())
    found = speed.measured()
    assert found is not None
    assert (found.width, len(found.plain), len(found.quantized)) == (4, 2, 2)
    assert plan()["speed"]["source"] == "measured"


@pytest.mark.slow
def test_gpu_is_measured_in_sixteen_bits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "device_name", lambda: "gpu")
    lines = dict(speed.measure(speed.Sizes(((1, 128, 1),), prompt=12, answer=2)))
    assert "bfloat16, prefill" in lines
    found = speed.measured()
    assert found is not None
    assert found.width == 2


def test_decode_times_are_those_between_tokens() -> None:
    clock = speed.Clock(begun=0.0, noted=[5.0, 6.0, 8.0, 9.0, 10.0, 99.0])
    assert clock.token(5) == 1.0
    assert clock.first == 5.0
