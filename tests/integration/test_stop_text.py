"""Base models stop where the next turn would begin: in rollouts, episodes and chats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
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


def test_a_text_of_the_settings_ends_rollouts_and_stays_in_them() -> None:
    plain = build_components(settings(rollout={"max_tokens": 24}))
    free = [rollout for group in sampled(plain, plain.policy).groups for rollout in group.rollouts]
    stop = free[0].text[5:8]
    setup = build_components(settings(rollout={"max_tokens": 24, "stop": [stop]}))
    assert setup.sampling.at_stop_text == eval_spec(setup).sampling.at_stop_text == setup.chat.at_stop_text
    found = [rollout for group in sampled(setup, setup.policy).groups for rollout in group.rollouts]
    for whole, rollout in zip(free, found, strict=True):
        before, text, _ = whole.text.partition(stop)
        assert rollout.ids_T.tolist() == whole.ids_T[: rollout.ids_T.size].tolist()
        assert rollout.text.startswith(before + text)
        assert rollout.finish == ("stop" if text else whole.finish)
    assert any(rollout.ids_T.size < whole.ids_T.size for whole, rollout in zip(free, found, strict=True))


def test_a_text_of_the_settings_ends_no_chat() -> None:
    plain = build_components(settings(rollout={"max_tokens": 24}))
    whole = "".join(Conversation(ChatModel.of(plain, plain.sampling), "model").ask("sort"))
    setup = build_components(settings(rollout={"max_tokens": 24, "stop": [whole[4:7]]}))
    assert "".join(Conversation(ChatModel.of(setup, plain.sampling), "model").ask("sort")) == whole


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
