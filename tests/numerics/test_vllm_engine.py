"""The engine `vllm` with a stand-in for vllm: a process that speaks the same protocol and samples by our loop."""

from __future__ import annotations

import io
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT
from requirements import needs_torch
from small_policies import make_samples

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.distributed.serialization import HEADER, decode, encode
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, RolloutConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError, EngineLostError
from sdpo_mlx.models.resolve import resolve

SAMPLING = SamplingParams(12, 1.0, 1.0, frozenset({2, 5}))
PROMPTS = [np.arange(3, 3 + size, dtype=np.int32) for size in (9, 4)]
SEEDS = [[1, 2], [2**64 - 1, 4]]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python whose vllm is the stand-in."""
    path = tmp_path / "python"
    stand_in = ROOT / "tests/support/vllm_stand_in.py"
    path.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} {stand_in} "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    return path


def policy_with(python: Path | str, **model: Any) -> Any:
    """A policy of the embedded model that samples with vllm."""
    settings = ModelConfig(backend="torch", device="cpu", dtype="float32", adapter=AdapterConfig(rank=4), **model)
    path, rollout = resolve("tiny", backend="torch").path, RolloutConfig(engine="vllm", vllm=str(python))
    return open_policy(path, settings, TeacherConfig(), TrainConfig(), rollout=rollout)


def asked(python: Path) -> list[dict[str, Any]]:
    """What the worker was asked, in order."""
    return [json.loads(line) for line in (python.parent / "log").read_text().splitlines()]


def rollouts(policy: Any, source: Any = None, **options: Any) -> dict[tuple[int, int], Any]:
    """All rollouts by place, of the policy's engine or another."""
    found = (source or policy.generation).generate(policy.model, PROMPTS, SAMPLING, SEEDS, **options)
    return {(at, n): rollout for at, n, rollout in found}


def test_messages_of_the_worker_are_those_of_ranks() -> None:
    worker = runpy.run_path(str(ROOT / "sdpo_mlx/backends/torch/rollouts/vllm_worker.py"))  # as a file: without torch
    read, write = worker["read"], worker["write"]
    arrays = {"ids": np.arange(3, dtype=np.int32), "logps": np.array([-0.5], np.float32)}
    sink = io.BytesIO()
    write(sink, {"at": 1, "seed": 2**64 - 1}, arrays)
    written = sink.getvalue()
    plain, found = decode(written[HEADER:])
    assert (int.from_bytes(written[:HEADER], "little"), plain) == (len(written) - HEADER, {"at": 1, "seed": 2**64 - 1})
    assert {name: each.tolist() for name, each in found.items()} == {"ids": [0, 1, 2], "logps": [-0.5]}
    message = encode({"op": "wake"})
    assert read(io.BytesIO(len(message).to_bytes(HEADER, "little") + message)) == ({"op": "wake"}, {})
    assert read(io.BytesIO(b"")) is None


@needs_torch
def test_vllm_gets_each_adapter_before_it_samples_and_sleeps_while_a_step_is_learned(python: Path) -> None:
    policy = policy_with(python)
    for version in (1, 2):
        found = rollouts(policy)
        assert found.keys() == {(0, 0), (0, 1), (1, 0), (1, 1)}
        assert found[1, 0].ids_T.tolist() == [(2**64 - 1) % 50, version, 1, 2]
        assert (found[1, 0].logps_T.tolist(), found[1, 0].finish) == ([-0.5, -1.0, -1.5, -2.0], "length")
        rollouts(policy)  # with the same weights: nothing is handed over
        assert policy.learn(make_samples(), ObjectiveConfig(kind="sdpo"), 0.05).applied
    policy.load_student(policy.state()["student"])
    cut = SamplingParams(12, 1.0, 1.0, frozenset({2, 5}), at_stop_text=lambda ids: len(ids) == 2)
    at, n, rollout = next(policy.generate(PROMPTS[:1], cut, [[7]]))
    assert (at, n, rollout.ids_T.tolist(), rollout.logps_T.tolist()) == (0, 0, [7, 4], [-0.5, -1.0])
    assert rollout.finish == "stop"
    step = ["generate", "generate", "sleep", "wake"]
    assert [each["op"] + str(each.get("version", "")) for each in asked(python)] == [
        *("open", "adapter1", *step, "adapter2", *step, "adapter4", "generate")
    ]
    opened, handed, generated = asked(python)[:3]
    assert (opened["dtype"], opened["rank"], opened["memory"]) == ("float32", 4, None)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {*handed["files"]}
    assert generated["prompts"] == [ids.tolist() for ids in PROMPTS]
    assert generated["sampling"] == {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "eos_ids": [2, 5]}


@needs_torch
def test_vllm_that_ends_or_fails_is_one_line_and_an_interrupt_ends_it(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_DIES", "1")
    policy = policy_with(python)
    monkeypatch.delenv("STAND_IN_DIES")
    found = policy.generate(PROMPTS, SAMPLING, SEEDS)
    next(found)
    with pytest.raises(
        EngineLostError, match=r"^vllm was lost: its process ended with 3: CUDA error: an illegal"
    ) as lost:
        list(found)
    assert lost.value.exit_code == 7
    with pytest.raises(KeyboardInterrupt):
        list(policy.generate(PROMPTS, SAMPLING, SEEDS, lambda: True))
    assert policy.generation.process is None
    with pytest.raises(EngineLostError, match=r"^vllm was lost: ValueError: the prompt is too long. Start the same"):
        list(policy.generate(PROMPTS, SamplingParams(8, 1.0, 1.0, frozenset()), SEEDS))
    assert len(list(policy.generate(PROMPTS, SAMPLING, SEEDS))) == 4
    process = policy.generation.process
    process.stdin.close()  # as when this process ends
    assert process.wait(60) == 0


@pytest.mark.slow
@needs_torch
def test_vllm_samples_with_the_weights_of_each_step(python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import generation

    monkeypatch.setenv("STAND_IN", "loop")
    policy, seen = policy_with(python), []
    for _ in range(2):
        ours, theirs = rollouts(policy, generation), rollouts(policy)
        assert ours.keys() == theirs.keys()
        for place, rollout in ours.items():
            assert (rollout.ids_T.tolist(), rollout.finish) == (theirs[place].ids_T.tolist(), theirs[place].finish)
            np.testing.assert_allclose(rollout.logps_T, theirs[place].logps_T, atol=1e-5)
        seen.append([rollout.logps_T.tolist() for rollout in theirs.values()])
        assert policy.learn(make_samples(), ObjectiveConfig(kind="sdpo"), 0.05).applied
    assert seen[0] != seen[1]


@needs_torch
def test_vllm_that_cannot_start_is_a_fault_of_the_settings() -> None:
    with pytest.raises(ConfigError, match=r"/no/python cannot be run: No such file or directory \(rollout.vllm\)"):
        policy_with("/no/python")
    with pytest.raises(ConfigError, match=r"vllm cannot be started: ModuleNotFoundError: No module named 'vllm'"):
        policy_with(sys.executable)
    with pytest.raises(ConfigError, match="vllm samples with a LoRA"):
        open_policy(
            resolve("tiny", backend="torch").path,
            ModelConfig(backend="torch", device="cpu", adapter=AdapterConfig(kind="dora")),
            TeacherConfig(),
            TrainConfig(),
            rollout=RolloutConfig(engine="vllm", vllm=sys.executable),
        )


@pytest.mark.parametrize(
    "options", [{"engine": "vllm"}, {"vllm": "python"}, {"engine": "vllm", "vllm": "p", "top_p": 0.9}]
)
def test_settings_of_vllm_are_complete(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="engine: vllm"):
        RolloutConfig(**options)


def test_python_of_vllm_without_its_engine_is_said_to_be_unused() -> None:
    with pytest.raises(ValueError, match="without engine: vllm it is not used, and engine is auto"):
        RolloutConfig(vllm="python")
