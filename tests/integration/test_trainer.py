"""The loop on the embedded model: exact resume, nothing to learn, numbers that are none, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import Watcher, assert_same, events, last_state, remains, trained
from small_runs import settings as small

from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import ConfigError, DivergedError, StorageError
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.runs import checkpoint
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import fit
from sdpo_mlx.training import session

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "dora, trust region, dropout": {
        "teacher": {"kind": "trust_region", "update_rate": 0.3},
        "model": {"adapter": {"kind": "dora", "rank": 8, "dropout": 0.1}},
    },
    "full, live, two updates": {
        "teacher": {"kind": "live"},
        "model": {"adapter": {"kind": "full"}},
        "train": {"learning_rate": 1e-4, "updates_per_batch": 2},
    },
    "hybrid, warm-up, cosine": {"objective": {"kind": "hybrid"}, "train": {"schedule": "cosine", "warmup_steps": 2}},
}
ROLLOUTS, QUICK = 4, {"problems_per_step": 2, "group_size": 2, "max_tokens": 8}
WHOLE = {**QUICK, "max_tokens": 16}  # some answers end by themselves
SHORT = {"steps": 2, "save_every": 2, "eval_every": 2}


def settings(**sections: Any) -> Config:
    """The small settings with even fewer and shorter rollouts."""
    return small(**{"rollout": QUICK, "eval": {"problems": 1}, **sections})


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step, to be read or refused."""
    folder = tmp_path_factory.mktemp("one-step") / "run"
    trained(folder, settings(train={**SHORT, "steps": 1}))
    return folder


def types(folder: Path) -> list[tuple[str, int]]:
    return [(event["type"], event["step"]) for event in read_events(folder / "events.jsonl")]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_run_goes_on_to_the_same_bytes(variant: str, tmp_path: Path) -> None:
    sections = VARIANTS[variant]
    steps, stops = (4, [1, 3]) if variant == "default" else (3, [2])
    train = {**SHORT, "steps": steps, **sections.get("train", {})}
    cfg = settings(**{"rollout": WHOLE, **sections, "train": train})
    trained(tmp_path / "whole", cfg)
    for done, stop in zip([0, *stops], stops, strict=False):
        assert trained(tmp_path / "parts", cfg, Watcher(after=stop - done)) is None
    trained(tmp_path / "parts", cfg)
    assert_same(tmp_path / "parts", tmp_path / "whole")
    resumed = [step for kind, step in types(tmp_path / "parts") if kind == "resumed"]
    assert resumed == stops
    assert types(tmp_path / "whole").count(("run_started", 0)) == types(tmp_path / "parts").count(("run_started", 0))
    assert not any(kind == "resumed" for kind, _ in types(tmp_path / "whole"))


def test_a_run_learns_and_its_seed_matters(tmp_path: Path) -> None:
    trained(tmp_path / "a", settings(train=SHORT))
    trained(tmp_path / "b", settings(train={**SHORT, "seed": 1}))
    assert last_state(tmp_path / "a") != last_state(tmp_path / "b")
    assert all(event["tokens/learned"] > 0 for event in events(tmp_path / "a", "step"))


def test_a_finished_run_changes_nothing_when_started_again(tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "steps": 1})
    trained(tmp_path / "run", cfg)
    before = remains(tmp_path / "run")
    trained(tmp_path / "run", cfg)
    assert remains(tmp_path / "run") == before


def test_more_steps_go_on_where_a_run_ended(tmp_path: Path) -> None:
    one, two = (settings(train={**SHORT, "steps": steps, "eval_every": 1}) for steps in (1, 2))
    trained(tmp_path / "run", one)
    trained(tmp_path / "run", two)
    trained(tmp_path / "whole", two)
    assert_same(tmp_path / "run", tmp_path / "whole")


CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "train.learning_rate": {"train": {**SHORT, "steps": 1, "learning_rate": 1e-3}},
    "teacher.kind": {"train": {**SHORT, "steps": 1}, "teacher": {"kind": "frozen"}},
    "model.adapter.rank": {"train": {**SHORT, "steps": 1}, "model": {"adapter": {"rank": 4}}},
    "task.name": {"train": {**SHORT, "steps": 1}, "task": {"name": "tiny:mid"}},
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_changed_setting_is_refused_in_one_line_and_the_run_left_alone(key: str, one_step: Path) -> None:
    before = (one_step / "events.jsonl").read_bytes(), last_state(one_step)
    with pytest.raises(ConfigError, match=key) as caught:
        trained(one_step, settings(**CHANGES[key]))
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.line()
    assert ((one_step / "events.jsonl").read_bytes(), last_state(one_step)) == before


@pytest.mark.parametrize("part", ["base", "tokenizer"])
def test_another_base_or_tokenizer_is_refused(part: str, one_step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Components.identity
    monkeypatch.setattr(Components, "identity", lambda self: {**identity(self), part: "another"})
    with pytest.raises(ConfigError, match=f'{part} was "[0-9a-f]+", is "another"'):
        trained(one_step, settings(train={**SHORT, "steps": 1}))


def test_a_damaged_newest_checkpoint_falls_back_with_a_warning_and_the_same_end(tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "steps": 4})
    trained(tmp_path / "whole", cfg)
    assert trained(tmp_path / "run", cfg, Watcher(after=3)) is None
    newest = tmp_path / "run" / "checkpoints" / "step-000003" / "teacher.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    trained(tmp_path / "run", cfg)
    warnings = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["type"] == "warning"]
    assert ["step-000003 is damaged" in e["message"] for e in warnings] == [True]
    assert ("resumed", 2) in types(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_run_with_every_checkpoint_damaged_says_so(tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "save_every": 1})
    trained(tmp_path / "run", cfg)
    files = [*(tmp_path / "run" / "checkpoints").glob("*/student.safetensors")]
    assert len(files) > 1
    for path in files:
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="no checkpoint can be read"):
        trained(tmp_path / "run", cfg)


BARREN = {"task": {"feedback": "none"}, "teacher": {"demonstration": "off"}}


def state_bytes(setup: Components) -> dict[str, bytes]:
    state = setup.policy.state()
    return {f"{part}/{name}": array.tobytes() for part, arrays in state.items() for name, array in arrays.items()}


def test_steps_without_a_signal_change_no_byte_and_warn_once(tmp_path: Path) -> None:
    cfg = settings(**BARREN, train={**SHORT, "steps": 6, "weight_decay": 0.1})
    start: dict[str, bytes] = {}
    trained(tmp_path / "run", cfg, change=lambda setup: start.update(state_bytes(setup)))
    assert last_state(tmp_path / "run") == start
    warnings = [e for e in read_events(tmp_path / "run" / "events.jsonl") if e["type"] == "warning"]
    assert [e["step"] for e in warnings] == [5]
    assert f"5 steps in a row: {5 * ROLLOUTS} rollouts, 0 with feedback" in warnings[0]["message"]
    assert "Try easier problems" in warnings[0]["message"]
    for event in events(tmp_path / "run", "step"):
        assert event["groups/no_signal"] == 1.0
        assert (event["skip/no_signal"], event["tokens/learned"], event["loss"]) == (ROLLOUTS, 0, None)


def test_the_warning_of_nothing_to_learn_survives_a_stop(tmp_path: Path) -> None:
    cfg = settings(**BARREN, train={**SHORT, "steps": 6})
    assert trained(tmp_path / "run", cfg, Watcher(after=3)) is None
    trained(tmp_path / "run", cfg)
    assert [step for kind, step in types(tmp_path / "run") if kind == "warning"] == [5]


@pytest.mark.parametrize("kind", ["ema", "live", "trust_region"])
def test_learning_rate_zero_changes_nothing_at_all(kind: str, tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "learning_rate": 0.0, "weight_decay": 0.1}, teacher={"kind": kind})
    start: dict[str, bytes] = {}
    trained(tmp_path / "run", cfg, change=lambda setup: start.update(state_bytes(setup)))
    assert last_state(tmp_path / "run") == start
    assert all(event["divergence/mean"] > 0 for event in events(tmp_path / "run", "step"))


def poisoned(steps: set[int], *poisons: Callable[[Any], Any]) -> Callable[[Components], None]:
    """Spoil the samples of some calls of `learn` (counted from 1), in each way in turn."""

    def change(setup: Components) -> None:
        policy: Any = setup.policy
        learn, calls, ways = policy.learn, iter(range(1, 1000)), cycle(poisons)

        def spoilt(samples: Any, *args: Any, **kwargs: Any) -> Any:
            if next(calls) in steps:
                samples = [next(ways)(samples[0]), *samples[1:]]
            return learn(samples, *args, **kwargs)

        policy.learn = spoilt

    return change


POISONS: dict[str, Callable[[Any], Any]] = {
    "nan log-prob": lambda s: replace(s, rollout_logps_T=np.full_like(s.rollout_logps_T, np.nan)),
    "infinite weight": lambda s: replace(s, distil_weight=float("inf")),
    "nan weight": lambda s: replace(s, distil_weight=float("nan")),
}


def test_five_bad_steps_in_a_row_end_the_run_with_the_last_good_weights(one_step: Path, tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "steps": 12})
    with pytest.raises(DivergedError, match="5 steps in a row") as caught:
        trained(tmp_path / "run", cfg, change=poisoned(set(range(2, 99)), *POISONS.values()))
    assert caught.value.exit_code == 6
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 6
    assert last_state(tmp_path / "run") == last_state(one_step)
    bad = [event for event in events(tmp_path / "run", "step") if "non_finite" in event]
    assert [event["step"] for event in bad] == [2, 3, 4, 5, 6]
    assert all(event["non_finite"][0].startswith("tiny-") for event in bad)
    assert bad[-1]["non_finite"][0] in caught.value.line()
    assert all(event["tokens/learned"] == 0 for event in bad)


def test_fewer_bad_steps_are_left_out_and_the_run_goes_on(tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "steps": 7})
    trained(tmp_path / "run", cfg, change=poisoned({1, 2, 3, 4, 6}, POISONS["nan log-prob"]))
    bad = [event["step"] for event in events(tmp_path / "run", "step") if "non_finite" in event]
    assert bad == [1, 2, 3, 4, 6]
    warnings = [e["message"] for e in read_events(tmp_path / "run" / "events.jsonl") if e["type"] == "warning"]
    assert len(warnings) == 5
    assert "1 in a row, 5 in total" in warnings[-1]
    assert all(np.isfinite(np.frombuffer(b, np.float32)).all() for n, b in last_state(tmp_path / "run").items())


def test_a_diverged_run_can_be_resumed_once_mended(tmp_path: Path) -> None:
    cfg = settings(train={**SHORT, "steps": 6})
    with pytest.raises(DivergedError):
        trained(tmp_path / "run", cfg, change=poisoned(set(range(1, 99)), POISONS["nan weight"]))
    trained(tmp_path / "run", cfg)
    assert [e["step"] for e in events(tmp_path / "run", "step")] == list(range(1, 7))


def scored(values: list[float]) -> Callable[[Components], None]:
    """Answers of the held-out problems get these rewards, one evaluation after the other."""

    def change(setup: Components) -> None:
        task: Any = setup.task
        held, grade, left = {p.id for p in task.problems("held_out")}, task.grade, list(values)
        count = setup.cfg.eval.problems or 0
        pending: list[float] = []

        def given(problem: Any, text: str, *, truncated: bool = False) -> Any:
            found = grade(problem, text, truncated=truncated)
            if problem.id not in held:
                return found
            if not pending:
                pending.extend([left.pop(0)] * count)
            return replace(found, reward=pending.pop())

        task.grade = given

    return change


def best(folder: Path) -> int:
    state = checkpoint.load(folder / "checkpoints")
    assert state is not None
    return int(state.meta["state"]["best_step"])


def test_patience_stops_and_the_best_adapter_is_kept(tmp_path: Path) -> None:
    cfg: Config = settings(
        train={"steps": 10, "save_every": 10, "eval_every": 1, "learning_rate": 5e-3, "patience": 3},
        eval={"problems": 1, "samples": 1},
    )
    trained(tmp_path / "run", cfg, change=scored([0.1, 0.2, 0.5, 0.4, 0.5, 0.3, 0.9]))
    # the best is step 2; a tie is no new best, so that three evaluations later it is over
    assert [event["step"] for event in events(tmp_path / "run", "eval")] == [0, 1, 2, 3, 4, 5]
    assert best(tmp_path / "run") == 2
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 5]
    trained(
        tmp_path / "two",
        settings(train={"steps": 2, "learning_rate": 5e-3, "eval_every": 1}, eval=cfg.eval.model_dump()),
    )
    kept = build_components(cfg).policy
    loaded = checkpoint.load(tmp_path / "two" / "checkpoints")
    assert loaded is not None
    kept.load_state(loaded.state)
    from safetensors.numpy import load

    adapter = load((tmp_path / "run" / "adapters.safetensors").read_bytes())
    assert {n: a.tobytes() for n, a in adapter.items()} == {n: a.tobytes() for n, a in kept.state()["student"].items()}
    assert adapter.keys() == loaded.state["student"].keys()


def test_untouched_model_is_scored_once_if_no_adapter_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    evaluate = session.evaluate
    monkeypatch.setattr(session, "evaluate", lambda *given, **more: (calls.append(1), evaluate(*given, **more))[1])
    cfg = small(train={"steps": 1, "learning_rate": 0.0})
    with RunFolder.open(tmp_path / "run") as folder:
        result = fit(build_components(cfg), folder, lambda *_: None)
    assert result.state.best_step == 0
    assert len(calls) == 2  # before training, and after the last step
    first, step_0, _, last = events(tmp_path / "run", "eval")
    assert (first["adapter"], last["adapter"], last["adapter_step"]) == ("none", "best", 0)
    assert first["rewards"] == step_0["rewards"] == last["rewards"]
    assert (result.difference, *result.interval) == (0.0, 0.0, 0.0)


def test_slow_evaluations_become_rarer_after_the_first_step_and_stay_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdpo_mlx.runs.pace.FAST_EVALUATION", 0.0)
    rare = {"steps": 2, "save_every": 1, "eval_every": 1, "eval_share": 1e-6}
    trained(tmp_path, settings(train=rare))
    (warning,) = (event for event in events(tmp_path, "warning") if "eval_every" in event)
    assert warning["step"] == 1
    assert "train.eval_share=1" in warning["message"]
    monkeypatch.undo()  # what the first step decided is in the checkpoint
    trained(tmp_path, settings(train={**rare, "steps": 4}))
    assert [event["step"] for event in events(tmp_path, "eval")] == [0, 2, 4]
    trained(tmp_path, settings(train={**rare, "steps": 6, "eval_share": 1.0}))
    assert [event["step"] for event in events(tmp_path, "eval")] == [0, 2, 4, 5, 6]
