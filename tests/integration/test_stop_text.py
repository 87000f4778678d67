"""Base models stop where the next turn would begin: in rollouts, episodes, chats and the server's replies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import settings

from sdpo_mlx.evaluation.spec import eval_spec
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.rl.rollouts import Sampled, sample
from sdpo_mlx.runs.conversation import ChatModel, Conversation

SEEDS = [[11, 12, 13, 14]] * 2


@pytest.fixture(scope="module")
def setup() -> Components:
    """The embedded model with the plain layout, which it was not trained on: it writes until the limit."""
    return build_components(settings(model={"chat_template": "plain"}, rollout={"max_tokens": 24}))


class Counting:
    """A policy that notes how many tokens it generated."""

    def __init__(self, setup: Components) -> None:
        self.setup, self.info, self.tokens = setup, setup.policy.info, 0

    def generate(self, *arguments: Any) -> Iterator[Any]:
        for found in self.setup.policy.generate(*arguments):
            self.tokens += found[2].ids_T.size
            yield found


def sampled(setup: Components, policy: Any) -> Sampled:
    problems = setup.task.problems("train")[:2]
    return sample(policy, setup.task, setup.chat, problems, setup.sampling, SEEDS)


def with_stop(setup: Components, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    monkeypatch.setattr(setup.chat, "source", replace(setup.chat.source, stop=stop))


def test_rollouts_stop_there_and_only_what_was_sampled_is_learned(
    setup: Components, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [rollout for group in sampled(setup, setup.policy).groups for rollout in group.rollouts]
    stop = free[0].text[5:8]
    with_stop(setup, monkeypatch, stop)
    policy = Counting(setup)
    groups = sampled(setup, policy).groups
    found = [rollout for group in groups for rollout in group.rollouts]
    assert policy.tokens == sum(rollout.ids_T.size for rollout in found)
    ended = 0
    for whole, rollout in zip(free, found, strict=True):
        before, text, _ = whole.text.partition(stop)
        size = rollout.ids_T.size
        assert rollout.ids_T.tolist() == whole.ids_T[:size].tolist()
        assert rollout.text == (before.rstrip() if text else whole.text)
        assert rollout.finish == ("stop" if text else whole.finish)
        ended += bool(text) and size < whole.ids_T.size
        if text:
            assert stop in setup.chat.decode(rollout.ids_T)
            assert stop not in setup.chat.decode(rollout.ids_T[:-1])
    assert ended
    teacher, objective, length = setup.cfg.teacher, setup.cfg.objective, setup.policy.info.context_length
    samples = distillation_batch(groups, setup.chat, teacher, objective, context_length=length, seed=0).samples
    rollouts = {(g.problem.id, n): r for g in groups for n, r in enumerate(g.rollouts)}
    assert samples
    for each in samples:
        ids_T = rollouts[each.problem_id, each.index].ids_T
        assert each.ids_T.tolist() == ids_T.tolist() == each.teacher_ids[slice(*each.teacher_span)].tolist()


def test_evaluation_and_chat_stop_there_too(setup: Components, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ChatModel.of(setup, setup.sampling)
    assert model.sampling.at_stop_text == eval_spec(setup).sampling.at_stop_text == setup.chat.at_stop_text
    whole = "".join(Conversation(model, "model").ask("sort"))
    stop = whole[4:7]
    with_stop(setup, monkeypatch, stop)
    side = Conversation(model, "model")
    shown = "".join(side.ask("sort"))
    assert shown == whole.partition(stop)[0]
    assert (side.last.finish, side.last.text) == ("stop", shown.rstrip())


# ---- the server's replies: what mlx-lm's handler makes of responses is their texts up to a `stop`

PIECES = st.lists(st.sampled_from(["\n", "User", ":", "\nUser:", "a", "", "Us", "\n\n", "b\nUser: c"]), max_size=9)


@given(PIECES, st.sampled_from([None, "length"]))
def test_server_replies_end_before_the_stop_text(pieces: list[str], finish: str | None) -> None:
    until = pytest.importorskip("sdpo_mlx.backends.mlx.server").until
    Response = pytest.importorskip("mlx_lm.server").Response
    responses = [Response(text, 0, 0.0, None, ()) for text in pieces]
    if responses:
        responses[-1] = replace(responses[-1], finish_reason=finish)
    given_out, ended = [], list[int]()
    read = iter(responses)
    for response in until("\nUser:", read, lambda: ended.append(1)):
        given_out.append(response)
        # Never shown before it is known whether it belongs to the stop text.
        assert "".join(pieces).partition("\nUser:")[0].startswith("".join(each.text for each in given_out))
    text, stop, _ = "".join(pieces).partition("\nUser:")
    assert "".join(each.text for each in given_out) == text
    assert len(ended) == bool(stop)
    assert len(given_out) == len(pieces) - len(list(read))  # the usage counts each token once
    if stop:
        assert not any(each.finish_reason for each in given_out)
    elif pieces:
        assert given_out[-1].finish_reason == finish


@pytest.mark.parametrize(("kind", "text"), [("chat", "a"), ("text", "a\nUser: b")])
def test_server_stops_chats_and_leaves_completions_alone(kind: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("sdpo_mlx.backends.mlx.server")
    response = pytest.importorskip("mlx_lm.server").Response
    context = SimpleNamespace(stop=lambda: None)
    responses = [response(piece, 0, 0.0, None, ()) for piece in ("a", "\nUs", "er: b")]
    monkeypatch.setattr(module.server.ResponseGenerator, "generate", lambda *_: (context, iter(responses)))
    monkeypatch.setattr(module.StoppingGenerator, "stop", "\nUser:")
    made = module.StoppingGenerator.__new__(module.StoppingGenerator)
    given_out = made.generate(SimpleNamespace(request_type=kind), None)[1]
    assert "".join(each.text for each in given_out) == text
