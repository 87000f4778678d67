"""Memory runs out on torch in each phase: the same answers and figures come with less at once, and no run is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from requirements import needs_torch
from small_policies import assert_same_gradient, make_samples, stir
from small_runs import events, settings, trained
from temp_folders import new_folder
from torch_architectures import VOCABULARY, write_architecture

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.config import ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
from sdpo_mlx.core.errors import ConfigError

pytestmark = needs_torch

SAMPLING = SamplingParams(12, 1.0, 0.9, frozenset(range(0, VOCABULARY, 5)), concurrency=6)
PROMPTS = [np.arange(size, dtype=np.int32) % 50 + 4 for size in (9, 1, 5, 3)]
SEEDS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]
OBJECTIVE = ObjectiveConfig(kind="hybrid", support="full")


@pytest.fixture(scope="module")
def opened() -> Any:
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    path = write_architecture(new_folder("out-of-memory") / "llama", "llama")
    model = ModelConfig(name="llama", backend="torch", device="cpu", adapter={"rank": 4})
    policy = TorchPolicy(path, model, TeacherConfig(), TrainConfig(micro_batch_tokens=400))
    stir(policy, scale=0.02)
    return policy


@pytest.fixture
def policy(opened: Any) -> Iterator[Any]:
    from sdpo_mlx.backends.command_size import UNBOUNDED

    opened.rows, opened.budget, opened.model = UNBOUNDED, 400, replace(opened.model, recompute=False)
    opened.shortages.clear()
    return opened


@pytest.fixture
def error() -> Exception:
    """What CUDA's allocator raises; the other names are in unit/backends/test_out_of_memory.py."""
    import torch

    return torch.OutOfMemoryError("CUDA out of memory")


@contextmanager
def failing(
    owner: Any, name: str, error: Exception, *, on: Callable[[int, Any], bool] = lambda _, __: True
) -> Iterator[list[int]]:
    """Raise an error in calls of a function: `on` gets the number of the call, from 1, and its first argument."""
    real, calls = getattr(owner, name), list[int]()

    def function(*given: Any, **options: Any) -> Any:
        calls.append(len(calls) + 1)
        if on(len(calls), given[0] if given else None):
            raise error
        return real(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, function)
        yield calls


def answers(policy: Any) -> dict[tuple[int, int], list[int]]:
    """The rollouts, each yielded once."""
    found = [((at, n), g.ids_T.tolist()) for at, n, g in policy.generate(PROMPTS, SAMPLING, SEEDS)]
    assert len(dict(found)) == len(found) == 10
    return dict(found)


@pytest.mark.parametrize("call", [1, 4, 9])
def test_sampling_that_runs_out_of_memory_gives_the_same_answers(policy: Any, call: int) -> None:
    from sdpo_mlx.backends.torch.generation import Batch

    error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    expected = answers(policy)
    with failing(Batch, "decode", error, on=lambda n, _: n == call):
        assert answers(policy) == expected
    assert policy.rows == 3  # of six at once
    assert [*policy.shortages.values()] == ["out of memory: at most 3 rollouts are sampled at once from now on"]


def test_prefill_that_runs_out_of_memory_is_tried_with_fewer_rows(policy: Any, error: Exception) -> None:
    from sdpo_mlx.backends.torch import generation

    expected = answers(policy)
    with failing(generation, "_start", error, on=lambda n, _: n == 3):
        assert answers(policy) == expected


def test_rows_are_halved_until_they_fit_and_stay_so(policy: Any, error: Exception) -> None:
    from sdpo_mlx.backends.torch.generation import Batch

    expected = answers(policy)
    with failing(Batch, "decode", error, on=lambda _, batch: len(batch.rows) > 1):
        assert answers(policy) == expected
        policy_rows = policy.rows
        assert answers(policy) == expected
    assert policy_rows == policy.rows == 1
    assert policy.learn(make_samples(3), OBJECTIVE, 0.0).warnings == (
        "out of memory: at most 1 rollouts are sampled at once from now on",
    )
    assert policy.learn(make_samples(3), OBJECTIVE, 0.0).warnings == ()


def test_one_rollout_that_does_not_fit_is_one_line(policy: Any, error: Exception) -> None:
    from sdpo_mlx.backends.torch.generation import Batch

    with failing(Batch, "decode", error), pytest.raises(ConfigError) as caught:
        answers(policy)
    assert caught.value.line() == (
        "out of memory while sampling one rollout (model). "
        "Lower rollout.max_tokens, set model.bits=4, or use a smaller model."
    )
    with failing(Batch, "decode", error), pytest.raises(ConfigError, match="while sampling one rollout"):
        list(policy.stream(PROMPTS[0], SAMPLING, 1))


@pytest.mark.parametrize(("role", "function"), [("student", "forward"), ("teacher", "log_probs")])
def test_scoring_that_runs_out_of_memory_gives_the_same_scores(
    policy: Any, error: Exception, role: Any, function: str
) -> None:
    sequences, spans = [np.tile(prompt, 4) for prompt in PROMPTS], [(2, 30), (1, 4), (3, 20), (2, 12)]
    expected = policy.score(role, sequences, spans, 3)
    with failing(policy, function, error, on=lambda n, _: n == 2 or (function == "forward" and n == 1)):
        found = policy.score(role, sequences, spans, 3)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.logps_T, theirs.logps_T, atol=2e-5)
        np.testing.assert_array_equal(ours.top_ids_TK, theirs.top_ids_TK)
    assert policy.budget < 400
    assert f"at most {policy.budget} tokens" in policy.shortages["tokens"]
    with failing(policy, function, error), pytest.raises(ConfigError, match="while scoring one rollout"):
        policy.score(role, sequences, spans, 3)


@pytest.mark.parametrize("phase", ["teacher", "teacher's logits", "student"])
def test_step_that_runs_out_of_memory_gives_the_same_figures(policy: Any, error: Exception, phase: str) -> None:
    from sdpo_mlx.backends.torch.gradient import TorchGradientPass

    owner, name = {
        "teacher": (policy, "forward"),
        "teacher's logits": (TorchGradientPass, "teacher_logits"),
        "student": (TorchGradientPass, "add"),
    }[phase]
    samples, before = make_samples(11, "hybrid"), policy.state()["student"]
    expected = policy.learn(samples, OBJECTIVE, 0.0)
    with failing(owner, name, error, on=lambda n, _: n == 1):
        found = policy.learn(samples, OBJECTIVE, 0.0)
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    with (
        failing(owner, name, error),
        pytest.raises(ConfigError, match=r"with train\.grad_checkpoint .*rollout\.max_tokens"),
    ):
        policy.learn(samples, OBJECTIVE, 1e-3)
    assert all(np.array_equal(each, before[name]) for name, each in policy.state()["student"].items())


def test_rollout_that_does_not_fit_alone_is_learned_with_recomputation(
    policy: Any, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backend_pairs import torch_gradient

    from sdpo_mlx.backends.torch.gradient import TorchGradientPass

    add, samples = TorchGradientPass.add, make_samples(11, "hybrid")
    loss, grads = torch_gradient(policy, samples, OBJECTIVE)
    tried: list[tuple[int, bool]] = []

    def short_of_memory(run: Any, *rest: Any) -> Any:
        tried.append((policy.budget, run.model.recompute))
        if not run.model.recompute:
            raise error
        return add(run, *rest)

    monkeypatch.setattr(TorchGradientPass, "add", short_of_memory)
    again, found = torch_gradient(policy, samples, OBJECTIVE)
    assert tried[:5] == [
        (400, False),
        (200, False),
        (100, False),
        (50, False),
        (400, True),
    ]  # the longest has 26 tokens
    assert again == pytest.approx(loss, rel=1e-5)
    assert_same_gradient(found, grads, 1e-5)
    policy.model = replace(policy.model, recompute=False)
    (warning,) = policy.learn(samples, OBJECTIVE, 0.0).warnings
    assert "run again in the backward pass" in warning
    assert "train.grad_checkpoint" in warning
    assert policy.learn(samples, OBJECTIVE, 0.0).warnings == ()


def test_optimizer_and_teacher_without_memory_are_one_line(policy: Any, error: Exception) -> None:
    with failing(policy.optimizer, "step", error), pytest.raises(ConfigError, match="optimizer's step"):
        policy.learn(make_samples(3), OBJECTIVE, 1e-3)
    with failing(policy, "_moved_teacher", error), pytest.raises(ConfigError, match="while updating the teacher"):
        policy.update_teacher(TeacherConfig())


def test_loading_without_memory_names_sizes_and_a_smaller_form(error: Exception) -> None:
    from sdpo_mlx.backends.torch import loading

    path = write_architecture(new_folder("too-large") / "llama", "llama")
    cfg = ModelConfig(name="llama", backend="torch", device="cpu")
    with failing(loading, "_make_differentiable", error), pytest.raises(ConfigError) as caught:
        loading.load(path, cfg)
    assert caught.value.line() == (
        "out of memory while loading: the weights are 0.0 GB in their files (llama). "
        "Set model.bits=4, or use a smaller model."
    )


def test_rollouts_at_once_follow_from_free_memory(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.torch import policy as module

    a_token, a_row = policy._row_bytes
    assert a_token == 3 * 2 * 2 * 8 * 4  # layers, keys and values, heads, numbers, float32
    expected, tokens = answers(policy), 9 + 12
    monkeypatch.setattr(module, "free_bytes", lambda _: int(2.5 * (a_token * tokens + a_row) / module.ROWS_SHARE))
    assert policy.most_rows(tokens) == 2
    assert answers(policy) == expected
    monkeypatch.setattr(module, "free_bytes", lambda _: 0)
    assert policy.most_rows(tokens) == 1
    assert answers(policy) == expected


@pytest.mark.slow
def test_run_short_of_memory_in_each_phase_is_the_run_without(tmp_path: Path) -> None:
    from sdpo_mlx.backends.torch.generation import Batch
    from sdpo_mlx.backends.torch.policy import TorchPolicy

    cfg = settings(
        model={"backend": "torch", "device": "cpu"},
        rollout={"problems_per_step": 2, "group_size": 2, "max_tokens": 12},
        train={"steps": 2, "save_every": 1, "eval_every": 1, "micro_batch_tokens": 512},
        eval={"problems": 4},
    )
    trained(tmp_path / "enough", cfg)
    error, loaded = RuntimeError("CUDA error: out of memory"), list[Any]()
    often = failing(Batch, "decode", error, on=lambda n, batch: bool(loaded) and n % 5 == 3 and len(batch.rows) > 1)
    with often, failing(TorchPolicy, "forward", error, on=lambda n, _: n == 1):
        trained(tmp_path / "short", cfg, change=loaded.append)
    enough, short = ([e["rewards"] for e in events(tmp_path / name, "eval")] for name in ("enough", "short"))
    assert short == enough
    for figure in ("success/rate", "tokens/learned", "loss"):
        enough, short = ([e[figure] for e in events(tmp_path / name, "step")] for name in ("enough", "short"))
        assert short == pytest.approx(enough, rel=1e-3)
    told = [event["message"] for event in events(tmp_path / "short", "warning")]
    assert any("rollouts are sampled at once" in message for message in told)
