"""Forgetting: exactly nothing before training, the true divergence after it, and no byte of the run changed by it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from few_prompts import FEW
from ranks import BACKENDS
from sdpo_cli.commands.train import summary
from small_runs import Watcher, assert_same, settings, trained
from small_tokenizers import folder

from sdpo_mlx.backends.base import Scores
from sdpo_mlx.config import Config
from sdpo_mlx.evaluation.forgetting import (
    Forgetting,
    Reference,
    TextScore,
    divergence,
    forgetting,
    load_reference,
    reference,
    save_reference,
    text_score,
)
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.trainer import fit
from sdpo_mlx.training import final_scores
from sdpo_mlx.training.model_card import Base, CardFacts, model_card

SHORT = settings(
    train={"steps": 2, "save_every": 1, "eval_every": 0},
    rollout={"problems_per_step": 1, "group_size": 2, "max_tokens": 8},
    eval={"problems": 1},
)


@pytest.fixture(scope="module", autouse=True)
def few_general_prompts() -> None:
    """Here all of them, except where a run is carried out."""


@cache
def opened(backend: str = "mlx") -> tuple[Components, Reference]:
    setup = build_components(settings(model={"backend": backend}))
    return setup, reference(setup.policy, setup.chat)


def stirred(setup: Components, scale: float) -> dict[str, Any]:
    draw = np.random.default_rng(3)
    arrays = setup.policy.state()["student"]
    return {n: (a + scale * draw.standard_normal(a.shape)).astype(np.float32) for n, a in arrays.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_untouched_student_has_forgotten_exactly_nothing(backend: str) -> None:
    setup, base = opened(backend)
    found = forgetting(setup.policy, setup.chat, base)
    assert (found.divergence, found.error) == (0.0, 0.0)
    assert found.before == found.after
    assert base.logps_T.size > 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_divergence_is_that_of_the_whole_distributions(backend: str) -> None:
    setup, base = opened(backend)
    policy, size = setup.policy, setup.policy.info.vocab_size
    sequences = [np.concatenate(pair) for pair in zip(base.prompts, base.answers, strict=True)]
    spans = [(p.size, each.size) for p, each in zip(base.prompts, sequences, strict=True)]

    def whole() -> np.ndarray:
        rows = []
        for scores in policy.score("student", sequences, spans, size):
            logps_TV = np.empty(scores.top_logps_TK.shape)
            np.put_along_axis(logps_TV, scores.top_ids_TK.astype(np.int64), scores.top_logps_TK, axis=-1)
            rows.append(logps_TV)
        return np.concatenate(rows)

    untouched, first = dict(policy.state()["student"]), whole()
    try:
        policy.load_student(stirred(setup, 0.05))
        exact = float((np.exp(first) * (first - whole())).sum(-1).mean())
        found = forgetting(policy, setup.chat, base)
    finally:
        policy.load_student(untouched)
    assert exact > 0.01
    assert abs(found.divergence - exact) < 4 * found.error
    assert found.error < exact / 2
    assert found.after != found.before


def test_estimate_is_unbiased_and_quieter_than_the_plain_mean() -> None:
    draw = np.random.default_rng(0)
    p = draw.dirichlet(np.ones(50))
    for scale in (0.02, 0.2, 1.0):
        q = p * np.exp(scale * draw.standard_normal(50))
        log_p, log_q = np.log(p), np.log(q / q.sum())
        exact = float((p * (log_p - log_q)).sum())
        rows = [draw.choice(50, size=288, p=p) for _ in range(200)]
        found = [divergence(log_p[ids], log_q[ids]) for ids in rows]
        plain = [float((log_p - log_q)[ids].mean()) for ids in rows]
        estimates = np.array([value for value, _ in found])
        assert abs(estimates.mean() - exact) < 4 * estimates.std() / math.sqrt(200) + 0.02 * exact
        assert estimates.std() < 0.7 * np.std(plain)
        assert np.mean([error for _, error in found]) == pytest.approx(estimates.std(), rel=0.4)


def test_one_token_of_an_absurd_ratio_does_not_carry_the_estimate() -> None:
    base = np.full(300, -1.0)
    student = base - 0.5
    base[7], student[7] = -9.0, -0.01
    value, _ = divergence(base, student)
    assert 0.3 < value < 0.6


@pytest.mark.parametrize("student", [np.array([-1.0, np.nan]), np.array([-1.0, -np.inf])])
def test_log_probs_that_are_none_give_no_number(student: np.ndarray) -> None:
    assert all(map(math.isnan, divergence(np.array([-1.0, -1.0]), student)))
    assert all(map(math.isnan, divergence(np.zeros(0), np.zeros(0))))


@pytest.mark.parametrize("context_length", [40, 77, 300, 1024])
def test_every_token_of_the_text_but_the_first_is_scored_once(context_length: int) -> None:
    setup, _ = opened()
    seen: list[np.ndarray] = []

    def score(role: str, sequences: Any, spans: Any) -> list[Scores]:
        seen.extend(ids[slice(*span)] for ids, span in zip(sequences, spans, strict=True))
        assert max(map(len, sequences)) <= context_length
        return [Scores(np.full(stop - start, -math.log(2), np.float32), None, None) for start, stop in spans]

    policy: Any = SimpleNamespace(info=SimpleNamespace(context_length=context_length), score=score)
    found = text_score(policy, setup.chat)
    ids = np.concatenate(seen)
    text = setup.chat.decode(ids)
    assert found.perplexity == pytest.approx(2.0)
    assert found.bits_per_byte == pytest.approx(ids.size / len(text.encode()))
    assert text.startswith("he ferry") or text.startswith(" ferry")
    assert text.endswith("people have begun to ask you.")


@pytest.mark.parametrize("context_length", [40, 300])
def test_windows_of_the_text_begin_as_the_tokenizer_begins_a_text(context_length: int) -> None:
    chat, seen = load_chat(folder("llama3")), list[np.ndarray]()

    def score(role: str, sequences: Any, spans: Any) -> list[Scores]:
        assert all(tuple(ids[: len(chat.opening_ids)]) == chat.opening_ids for ids in sequences)
        assert max(map(len, sequences)) <= context_length
        seen.extend(ids[slice(*span)] for ids, span in zip(sequences, spans, strict=True))
        return [Scores(np.full(stop - start, -math.log(2), np.float32), None, None) for start, stop in spans]

    policy: Any = SimpleNamespace(info=SimpleNamespace(context_length=context_length), score=score)
    found = text_score(policy, chat)
    ids = np.concatenate(seen)
    assert chat.opening_ids
    assert chat.decode(ids).startswith("The ferry")  # the first token has a score too
    assert found.perplexity == pytest.approx(2.0)
    assert found.bits_per_byte == pytest.approx(ids.size / len(chat.decode(ids).encode()))


def test_reference_returns_as_saved_and_only_for_its_own_base(tmp_path: Path) -> None:
    setup, base = opened()
    path, identity = tmp_path / "forgetting.json", {"base": "a", "tokenizer": "b"}
    save_reference(path, base, identity)
    found = load_reference(path, identity)
    assert found is not None
    assert found.record() == base.record() == reference(setup.policy, setup.chat).record()
    assert load_reference(path, {**identity, "base": "c"}) is None
    path.write_bytes(path.read_bytes()[:-40])
    assert load_reference(path, identity) is None
    path.write_text(json.dumps({"of": 1, "reference": []}))
    assert load_reference(path, identity) is None


def carried_out(folder: Path, cfg: Config, watcher: Watcher | None = None) -> tuple[Components, Any]:
    watcher = watcher or Watcher()
    setup = build_components(cfg)
    with RunFolder.open(folder) as opened_folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdpo_mlx.evaluation.forgetting._general", lambda: FEW)
        return setup, fit(setup, opened_folder, watcher, watcher.interrupted)


def told(folder: Path, kind: str = "forgetting") -> list[dict[str, Any]]:
    return [
        {name: value for name, value in event.items() if name != "time"}
        for event in read_events(folder / "events.jsonl")
        if event["type"] == kind
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Components, Any]:
    folder = tmp_path_factory.mktemp("forgetting") / "run"
    return folder, *carried_out(folder, SHORT)


def test_a_run_tells_what_was_forgotten_and_trains_to_the_same_bytes(whole: Any, tmp_path: Path) -> None:
    folder, setup, outcome = whole
    trained(tmp_path / "without", SHORT)
    assert (folder / "adapters.safetensors").read_bytes() == (tmp_path / "without/adapters.safetensors").read_bytes()
    before, after = told(folder)
    finished = told(folder, "run_finished")[0]
    assert (before["step"], before["adapter"], before["forgetting/divergence"]) == (0, "none", 0.0)
    assert (after["adapter"], after["adapter_step"]) == ("best", outcome.state.best_step)
    assert {name: finished[name] for name in outcome.forgetting.event()} == outcome.forgetting.event()
    assert outcome.forgetting == Forgetting.of(finished)
    assert any("on general prompts" in line for line in summary(setup, folder, outcome, 1.0))
    assert "diverges from its base" in (folder / "README.md").read_text()


def test_a_stopped_run_tells_the_same_and_asks_the_base_once(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    ask = final_scores.reference
    monkeypatch.setattr(final_scores, "reference", lambda *parts: asked.append(1) or ask(*parts))
    with pytest.raises(KeyboardInterrupt):
        carried_out(tmp_path / "run", SHORT, Watcher(after=1))
    carried_out(tmp_path / "run", SHORT)
    monkeypatch.setattr(final_scores, "forgetting", None)  # a finished run measures nothing again
    carried_out(tmp_path / "run", SHORT)
    assert asked == [1]
    assert told(tmp_path / "run") == told(whole[0])
    assert told(tmp_path / "run", "run_finished") == told(whole[0], "run_finished")
    assert_same(tmp_path / "run", whole[0])


def test_a_run_begun_without_a_reference_goes_on_without_one(tmp_path: Path) -> None:
    assert trained(tmp_path, SHORT, Watcher(after=1)) is None  # as a version without forgetting leaves it
    setup, outcome = carried_out(tmp_path, SHORT)
    finished = told(tmp_path, "run_finished")[0]
    assert finished["forgetting/divergence"] is None
    assert finished["forgetting/perplexity_before"] is None
    assert finished["forgetting/perplexity_after"] > 1
    assert not any("nats" in line for line in summary(setup, tmp_path, outcome, 1.0))
    assert "diverges" not in (tmp_path / "README.md").read_text()


def test_the_card_tells_what_was_forgotten() -> None:
    facts = CardFacts("demo", Base("base"), "trained.")
    found = Forgetting(0.01234, 0.001, TextScore(9.5, 1.0), TextScore(9.75, 1.1))
    text = model_card(replace(facts, forgetting=found), Config())
    assert "0.0123 nats per token" in text
    assert "from 9.50 to 9.75" in text
