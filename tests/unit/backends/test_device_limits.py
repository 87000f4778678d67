"""Memory limits of a GPU on a fake one, and how much work an evaluation covers."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import sdpo
from metal_rules import MetalRuleError, metal_rules
from paths import ROOT
from small_models import CONFIGS, write_config
from small_policies import found, make_policy, make_samples
from temp_folders import new_folder

from sdpo_mlx.backends.base import PREFILL, SamplingParams
from sdpo_mlx.backends.command_size import LEAST, UNBOUNDED, EvaluationSizes, chip_class, evaluation_limit
from sdpo_mlx.backends.mlx import limits, loading
from sdpo_mlx.backends.mlx.limits import device_limits, limit_bytes
from sdpo_mlx.backends.mlx.mlx_lm_api import mlx_lm_generate
from sdpo_mlx.config import MemoryConfig, ModelConfig, ObjectiveConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.hardware import amount_of

DOCS = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
RECOMMENDED = 800
BEFORE = {"wired": 1, "memory": 3, "cache": 2}
SAMPLING = SamplingParams(3, 1.0, 1.0, frozenset())


class FakeGPU:
    """Limits of a GPU, and every call that set one; refuses a wired limit if `wirable` is false."""

    def __init__(self, *, wirable: bool = True) -> None:
        self.now, self.calls, self.wirable = dict(BEFORE), list[str](), wirable

    def setter(self, name: str) -> Any:
        def put(value: int) -> int:
            if name == "wired" and not self.wirable:
                raise ValueError("the wired limit must not be set")
            self.calls.append(name)
            before, self.now[name] = self.now[name], value
            return before

        return put

    def install(self, patch: pytest.MonkeyPatch) -> None:
        gpu = limits.mx.Device(limits.mx.gpu)
        patch.setattr(limits.mx, "device_info", lambda: {"max_recommended_working_set_size": RECOMMENDED})
        patch.setattr(limits.mx, "default_device", lambda: gpu)
        for name in BEFORE:
            patch.setattr(limits.mx, f"set_{name}_limit", self.setter(name))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGPU]:
    """A GPU that must not be wired."""
    fake = FakeGPU(wirable=False)
    fake.install(monkeypatch)
    # mlx-lm asks Metal itself; there it would set the limit.
    monkeypatch.setattr(
        mlx_lm_generate, "maybe_set_recommended_wired_limit", lambda: limits.mx.set_wired_limit(RECOMMENDED)
    )
    yield fake
    assert fake.now == BEFORE


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
def test_limits_are_restored_however_a_block_ends(
    error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeGPU()
    fake.install(monkeypatch)

    def block() -> None:
        with device_limits(MemoryConfig(wired="auto")):
            assert fake.now == {"wired": 800, "memory": 680, "cache": 100}
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(error):
            block()
    assert fake.now == BEFORE


def test_limit_that_mlx_refuses_leaves_none_behind(gpu: FakeGPU) -> None:
    with pytest.raises(ValueError, match="must not be set"), device_limits(MemoryConfig(wired="auto")):
        pass
    assert gpu.now == BEFORE


def test_limits_of_blocks_that_end_in_any_order_are_restored(gpu: FakeGPU) -> None:
    late, early = device_limits(MemoryConfig()), device_limits(MemoryConfig(limit="50%"))
    late.__enter__()
    early.__enter__()
    late.__exit__(None, None, None)
    assert gpu.now["memory"] == 680
    early.__exit__(None, None, None)
    assert gpu.now == BEFORE


def test_no_phase_wires_memory_and_each_has_limits(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    seen: dict[str, dict[str, int]] = {}
    inside = {"forward": "score", "gradient": "learn"}
    for name, phase in inside.items():
        call = getattr(policy, name)

        def spy(*args: Any, call: Any = call, phase: str = phase) -> Any:
            seen[phase] = dict(gpu.now)
            return call(*args)

        monkeypatch.setattr(policy, name, spy)
    ids = np.arange(1, 9, dtype=np.int32)
    for _ in policy.generate([ids], SAMPLING, [[1, 2]]):
        seen["generate"] = dict(gpu.now)
    for _ in policy.stream(ids, SAMPLING, 1):
        seen["stream"] = dict(gpu.now)
    policy.score("student", [ids], [(3, 8)])
    policy.check_gradient()
    limited = {"wired": 1, "memory": 680, "cache": 100}
    assert seen == dict.fromkeys(("generate", "stream", "score", "learn"), limited)
    assert "wired" not in gpu.calls


def test_fake_gpu_catches_what_mlx_lm_does_by_itself(gpu: FakeGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlx_lm_generate.BatchGenerator, "_old_wired_limit", None, raising=False)  # for its __del__
    with pytest.raises(ValueError, match="must not be set"):
        mlx_lm_generate.BatchGenerator(make_policy().model.whole)
    assert gpu.calls.count("wired") == 0


def test_abandoned_generation_restores_the_limits(gpu: FakeGPU) -> None:
    rollouts = make_policy().generate([np.arange(1, 5, dtype=np.int32)], SAMPLING, [[1, 2, 3]])
    next(rollouts)
    assert gpu.now["cache"] == 100
    rollouts.close()
    assert gpu.now == BEFORE


def test_cpu_has_no_limits_and_no_bound() -> None:
    assert limit_bytes(MemoryConfig(wired="auto")) == {}
    assert make_policy().model.sizes.learning == UNBOUNDED


@pytest.mark.parametrize(
    ("text", "expected"),
    [("85%", 850), ("12.5 %", 125), ("2GB", 2 << 30), ("512 MB", 512 << 20), (4, 4 << 30), (0.5, 1 << 29), ("9B", 9)],
)
def test_amounts_of_memory_are_read(text: str | float, expected: int) -> None:
    assert amount_of(text, 1_000) == expected


@pytest.mark.parametrize("text", ["0%", "101%", "-3", "much", "", "0", "5 TB"])
def test_amounts_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        amount_of(text, 1_000)
    with pytest.raises(ValueError, match="memory"):
        MemoryConfig(limit=text)


def test_bound_grows_with_the_chip_and_is_absent_elsewhere() -> None:
    names = ["Apple M2", "Apple M4 Pro", "Apple M3 Max", "Apple M1 Ultra"]
    assert [chip_class(name) for name in names] == ["", "Pro", "Max", "Ultra"]
    bounds = [evaluation_limit(None, name) for name in names]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] < math.inf
    assert evaluation_limit(None, "NVIDIA H200") == evaluation_limit(None, "") == math.inf
    assert evaluation_limit(5.0, "Apple M2") == evaluation_limit(5.0, "") == 5e9


def test_evaluation_covers_no_more_than_its_bound() -> None:
    limit, block, whole = 2.6e12, 1e8, 4e9
    sizes = EvaluationSizes(limit, block, whole)
    assert sizes.prefill * 2 * whole <= limit < (sizes.prefill + 1) * 2 * whole
    assert sizes.learning * 6 * block <= limit < (sizes.learning + 1) * 6 * block
    assert sizes.one_graph < sizes.learning
    assert EvaluationSizes(limit, block, whole, by_block=False).learning < sizes.one_graph
    assert EvaluationSizes(1.0, block, whole).prefill == LEAST


@pytest.mark.parametrize("before", [0, 100, 10_000])
def test_attention_to_earlier_tokens_shortens_what_runs_at_once(before: int) -> None:
    limit, whole, keys = 2.6e12, 4e9, 3e5
    tokens = EvaluationSizes(limit, 1e8, whole, keys=keys).prefill_after(before)
    operations = [2 * n * (whole + keys * (before + n)) for n in (tokens, tokens + 1)]
    assert operations[0] <= limit < operations[1]
    assert tokens <= EvaluationSizes(limit, 1e8, whole).prefill_after(before)


def test_table_of_chips_in_the_docs_is_the_codes() -> None:
    rows = re.findall(r"^\| (M1 to M5|Pro|Max|Ultra) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$", DOCS, re.MULTILINE)
    assert len(rows) == 4
    for name, *numbers in rows:
        limit = evaluation_limit(None, f"Apple M1 {name}" if name != "M1 to M5" else "Apple M1")
        sizes = EvaluationSizes(limit, block=1e8, whole=4e9, keys=36 * 2 * 4_096, block_keys=2 * 4_096)
        gflop, prefill, learning = (int(number.replace(",", "")) for number in numbers)
        assert gflop == round(limit / 1e9)
        assert prefill == min(PREFILL, sizes.prefill)
        assert learning == sizes.learning
        assert f"{sizes.prefill_after(8_192)} tokens after 8,192\n" in DOCS or name != "M1 to M5"


@pytest.mark.parametrize("grad_checkpoint", [None, False])
def test_bound_holds_for_prompts_and_units_and_changes_no_gradient(
    grad_checkpoint: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = np.arange(100, dtype=np.int32) % 60
    samples = make_samples()
    options = {"micro_batch_tokens": 512, "grad_checkpoint": grad_checkpoint, "seed": 5}
    free = make_policy(**options)
    free_sizes = free.model.sizes
    tight = make_policy(**options, evaluation_gflop=40 * 2 * (free_sizes.whole + 40 * free_sizes.keys) / 1e9)
    sizes, graphs, seen = tight.model.sizes, list[int](), list[int]()
    assert (sizes.prefill, sizes.one_graph) == (40, LEAST)
    assert tight.pass_sizes(replace(SAMPLING, concurrency=64))["generate"] == 40
    assert LEAST <= sizes.learning == tight.budget < 512
    call = type(tight.model.whole).__call__

    def spy(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs.size)
        return call(self, inputs, *args, **kwargs)

    monkeypatch.setattr(type(tight.model.whole), "__call__", spy)
    list(tight.generate([ids], SAMPLING, [[1]]))
    assert sum(seen) >= ids.size
    assert max(seen) <= sizes.prefill
    graph = type(tight.model.trunk).graph
    monkeypatch.setattr(
        type(tight.model.trunk), "graph", lambda s, u, *a, **k: (graphs.append(u.tokens), graph(s, u, *a, **k))[1]
    )
    found = tight.gradient(samples, ObjectiveConfig(), 1.0, lambda: None)
    assert max(graphs, default=0) <= sizes.one_graph
    expected = free.gradient(samples, ObjectiveConfig(), 1.0, lambda: None)
    for name, grad in expected.grads.items():
        np.testing.assert_allclose(np.array(found.grads[name]), np.array(grad), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")])
def test_watchdog_is_relaxed_on_macos_before_mlx_is_imported(given: str | None, expected: str) -> None:
    name = "AGX_RELAX_CDM_CTXSTORE_TIMEOUT"
    code = f"""
import json, os, sys
os.environ.pop("{name}", None)
if {given!r} is not None: os.environ["{name}"] = {given!r}
sys.platform = "darwin"
import sdpo_mlx
print(json.dumps([os.environ["{name}"], "mlx" in sys.modules or "mlx.core" in sys.modules]))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == [expected, False]


def phases(policy: Any) -> dict[str, Callable[[], Any]]:
    """Everything that evaluates."""
    samples = [each for seed in range(2) for each in make_samples(seed)]
    ids = np.arange(300, dtype=np.int32) % 50
    texts, spans = [each.teacher_ids for each in samples], [each.teacher_span for each in samples]
    return {
        "generate": lambda: list(policy.generate([ids], SAMPLING, [list(range(50))])),
        "learn": lambda: found(policy, samples, ObjectiveConfig()),
        "score": lambda: policy.score("teacher", texts, spans),
    }


def learned(policy: Any) -> None:
    """One step of each phase."""
    for run in phases(policy).values():
        run()


@pytest.mark.parametrize(
    ("architecture", "grad_checkpoint"),
    [
        ("llama", None),
        pytest.param("llama", False, marks=pytest.mark.slow),
        pytest.param("qwen3-4bit", None, marks=pytest.mark.slow),
        pytest.param("qwen3_moe", None, marks=pytest.mark.slow),
        pytest.param("gemma3", None, marks=pytest.mark.slow),
        pytest.param("qwen3_5", None, marks=pytest.mark.slow),
    ],
)
def test_no_evaluation_is_above_the_bound(architecture: str, grad_checkpoint: bool | None) -> None:
    options = {"micro_batch_tokens": 4_096, "grad_checkpoint": grad_checkpoint}
    sizes = make_policy(architecture, **options).model.sizes
    limit = LEAST * max(6 * sizes.whole, 10 * sizes.head)
    loading.CHECKED.clear()
    with metal_rules(bound=limit):
        learned(make_policy(architecture, **options, evaluation_gflop=limit / 1e9))
    with pytest.raises(MetalRuleError, match="evaluation"), metal_rules(bound=limit):
        learned(make_policy(architecture, **options))


def test_checks_at_load_evaluate_one_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_config(new_folder("model"), {**CONFIGS["llama"], "num_hidden_layers": 4})

    def largest() -> float:
        loading.CHECKED.clear()
        with metal_rules(bound=math.inf) as rules:
            loading.load(folder, ModelConfig())
        return rules.largest

    by_layer = largest()
    monkeypatch.setattr(loading, "evaluated_by_layer", lambda _: nullcontext())
    assert 0 < by_layer < largest() / 2


LIMITED = {
    "eval": ("tiny", "--greedy", "--problems", "2"),
    "solve": ("--model", "tiny", "--attempts", "4"),
    "chat": ("tiny", "--prompt", "Write f(x): square", "--max-tokens", "4"),
}


@pytest.mark.parametrize("command", LIMITED)
def test_command_sets_each_limit_and_restores_it(
    command: str, gpu: FakeGPU, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = sdpo(command, *LIMITED[command], "--plain", "--set", "model.dtype=float32")
    assert code == 0 or (command == "solve" and code == 1), err  # 1: no attempt succeeded
    assert {*gpu.calls} == {"memory", "cache"}
    assert gpu.now == BEFORE


def test_float16_base_is_checked_and_advised_against(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy()
    assert policy.check_gradient() == ()
    monkeypatch.setitem(vars(policy), "info", replace(policy.info, dtype="float16"))
    assert [line for line in policy.check_gradient() if "bfloat16" in line] == list(policy.check_gradient()) != []
    policy.student = {name: array * np.inf for name, array in policy.student.items()}
    with pytest.raises(ConfigError, match=r"cannot be trained: the norm of its gradient is nan.*model\.dtype=bfloat16"):
        policy.check_gradient()
