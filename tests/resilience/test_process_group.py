"""Messages between ranks, how work is shared out, and what happens if a rank fails, diverges or disappears."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranks import on_threads
from small_policies import make_samples
from waiting import HANG_SECONDS

from sdpo_mlx.backends.base import PolicyInfo, SamplingParams, Update, no_update
from sdpo_mlx.backends.distributed import heartbeat, process_group, serialization
from sdpo_mlx.backends.distributed import policy as distributed
from sdpo_mlx.backends.distributed.launch import backend_on, open_process_group
from sdpo_mlx.backends.distributed.policy import DistributedPolicy
from sdpo_mlx.backends.distributed.process_group import FORWARD, GRADIENT, SINGLE_PROCESS, RankGroup
from sdpo_mlx.backends.distributed.sharding import cut
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.core.errors import ConfigError, RankLostError
from sdpo_mlx.types import Generation

SAMPLING = SamplingParams(4, 1.0, 1.0, frozenset({3}))


class Counting:
    """A policy of one number: each answer is its seed, each step adds one."""

    def __init__(self, start: float = 0.0, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.weight, self.teacher, self.group = np.array([start], np.float32), 0, SINGLE_PROCESS
        self.seeds: list[int] = []
        self.stream = self.score = self.adapter_config = self.memory = None  # of no use here
        self.pass_sizes = self.limit_pass = None

    @property
    def info(self) -> PolicyInfo:
        return PolicyInfo("c", "mlx", "cpu", self.dtype, 9, 99, 1, 1, True, {})

    def generate(self, prompts: Any, sampling: Any, seeds: Any, interrupted: Any) -> Iterator[Any]:
        for at, row in enumerate(seeds):
            for n, seed in enumerate(row):
                if interrupted():
                    raise KeyboardInterrupt
                self.seeds.append(seed)
                yield at, n, Generation(np.array([seed, len(prompts[at])], np.int32), np.zeros(2, np.float32), "stop")

    def learn(self, samples: Any, objective: Any, rate: float, *, temperature: float, interrupted: Any) -> Update:
        self.weight = self.weight + rate
        return Update(**{**vars(no_update("")), "applied": True, "tokens": len(samples)})

    def update_teacher(self, teacher: Any) -> None:
        self.teacher += 1

    def state(self) -> Any:
        return {"student": {"w": self.weight}, "teacher": {"w": self.weight * 0}, "optimizer": {}}

    def load_state(self, state: Any) -> None:
        self.weight = state["student"]["w"]


def run_ranks(size: int, lead: Any, own: Any = Counting) -> list[Any]:
    """`lead(policy)` on rank 0 while the others serve; each rank's result, the others' own policies."""

    def part(group: RankGroup) -> Any:
        mine = own()
        policy = DistributedPolicy(mine, "base", group)
        try:
            return policy.serve() or mine if group.rank else lead(policy)
        finally:
            group.close()

    return on_threads(size, part)


@given(st.lists(st.floats(0.1, 1e4), max_size=40), st.integers(1, 9))
def test_shares_cover_all_once_in_order_and_are_even(costs: list[float], size: int) -> None:
    parts = cut(costs, size)
    assert len(parts) == size
    assert [place for part in parts for place in part] == list(range(len(costs)))
    if costs:
        assert max(sum(costs[i] for i in part) for part in parts) <= sum(costs) / size + 2 * max(costs)


@given(st.recursive(st.none() | st.integers() | st.text() | st.floats(allow_nan=False), st.lists, max_leaves=9))
def test_message_arrives_as_it_was_sent(plain: Any) -> None:
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3).T, "b": np.array([np.nan, np.inf], np.float32)}
    arrays["c"] = np.array(7, dtype=np.int64)  # an array of no dimension is not one of one
    received, found = serialization.decode(serialization.encode(plain, arrays))
    assert received == plain
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, strict=True)
        assert found[name].dtype == array.dtype


def test_samples_arrive_as_they_were_sent() -> None:
    sent = make_samples(0, "hybrid")
    received = serialization.decode_samples(
        *serialization.decode(serialization.encode(*serialization.encode_samples(sent)))
    )
    for ours, theirs in zip(received, sent, strict=True):
        for name, value in vars(theirs).items():
            np.testing.assert_array_equal(getattr(ours, name), value)


def test_rollouts_of_all_ranks_come_back_in_their_places() -> None:
    seeds, prompts = [[1, 2, 3], [4, 5], [6]], [np.arange(n, dtype=np.int32) for n in (2, 3, 4)]

    def lead(policy: DistributedPolicy) -> Any:
        return {(at, n): answer.ids_T.tolist() for at, n, answer in policy.generate(prompts, SAMPLING, seeds)}

    results = run_ranks(3, lead)
    assert results[0] == {(at, n): [s, len(prompts[at])] for at, row in enumerate(seeds) for n, s in enumerate(row)}
    assert [len(each.seeds) for each in results[1:]] == [2, 2]


def test_rollout_of_another_rank_arrives_before_that_rank_samples_its_next() -> None:
    arrived, waited = threading.Event(), list[bool]()

    class Waiting(Counting):
        def generate(self, *args: Any) -> Iterator[Any]:
            for number, rollout in enumerate(super().generate(*args)):
                if self.group.rank == 1 and number == 1:
                    waited.append(arrived.wait(20))  # rank 0 has it while this rank still samples
                yield rollout

    def lead(policy: DistributedPolicy) -> Any:
        received = []
        for rollout in policy.generate([np.arange(2, dtype=np.int32)], SAMPLING, [[1, 2, 3, 4, 5]]):
            received.append(rollout[:2])
            if rollout[2].ids_T[0] == 3:  # the first of rank 1
                arrived.set()
        return sorted(received)

    assert run_ranks(2, lead, Waiting)[0] == [(0, n) for n in range(5)]
    assert waited == [True]


def test_ranks_that_run_passes_together_join_those_of_the_others() -> None:
    wanted = [[FORWARD] * 3 + [GRADIENT], [FORWARD, GRADIENT, GRADIENT], []]

    def part(group: RankGroup) -> list[str]:
        run: list[str] = []
        group.run_passes_together(run.append)
        with group.together():
            for kind in wanted[group.rank]:
                group.meet(kind)
                run.append(kind)
        with group.together():  # nothing is left over
            pass
        return run

    assert on_threads(3, part) == [[FORWARD] * 3 + [GRADIENT] * 2] * 3


def test_interrupt_between_passes_ends_the_call_on_all() -> None:
    def call(group: RankGroup) -> None:
        with group.together(), group.together():
            group.meet(FORWARD)
            if group.rank == 1:
                raise KeyboardInterrupt
            group.meet(FORWARD)

    def part(group: RankGroup) -> str:
        group.run_passes_together(lambda kind: None)
        with pytest.raises(KeyboardInterrupt):
            call(group)
        with group.together():  # all are in step again
            group.meet(GRADIENT)
        return "in step"

    assert on_threads(2, part) == ["in step"] * 2


def test_fault_before_a_pass_is_raised_on_the_ranks_that_wait_for_it() -> None:
    def part(group: RankGroup) -> None:
        group.run_passes_together(lambda kind: None)
        with group.together():
            if group.rank == 1:
                raise ConfigError("it does not fit")
            group.meet(FORWARD)

    first, second = on_threads(2, part)
    assert isinstance(first, ConfigError)
    assert (first.what, first.where) == ("it does not fit", "rank 1")
    assert second.line() == "it does not fit."


def test_rank_that_fails_within_a_pass_is_lost_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_group, "GRACE_SECONDS", 0.1)

    def part(group: RankGroup) -> Any:
        group.run_passes_together(lambda kind: None)
        try:
            with group.together():
                group.meet(FORWARD)
                if group.rank == 1:
                    raise MemoryError("no memory")
                group.meet(FORWARD)
        finally:
            group.close()  # sends no end: rank 1 has failed
            for line in group._heartbeat._connections if group.rank else ():
                line.shutdown(socket.SHUT_RDWR)  # as its process ends

    first, second = on_threads(2, part)
    assert isinstance(second, RankLostError)
    assert "rank 1 was lost: MemoryError: no memory" in str(second)
    assert isinstance(first, RankLostError)
    assert "rank 1 was lost" in str(first)


def test_rank_that_diverges_is_reset_to_rank_0s_state_with_a_warning() -> None:
    class Diverging(Counting):
        def learn(self, *args: Any, **options: Any) -> Update:
            update = super().learn(*args, **options)
            if self.group.rank == 1:
                self.weight = self.weight + 0.5
            return update

    def lead(policy: DistributedPolicy) -> Any:
        words = [policy.learn([], ObjectiveConfig(), 1.0).warnings for _ in range(distributed.CHECK_EVERY)]
        return words, policy.local.weight

    (words, weight), other = run_ranks(2, lead, Diverging)
    assert not any(words[:-1])
    assert "rank 1 diverged from rank 0" in words[-1][0]
    np.testing.assert_array_equal(other.weight, weight)


def test_fault_on_another_rank_is_raised_on_rank_0_and_the_ranks_continue() -> None:
    class Refusing(Counting):
        def load_state(self, state: Any) -> None:
            if self.group.rank == 1:
                raise ConfigError("it does not fit")
            super().load_state(state)

    def lead(policy: DistributedPolicy) -> Any:
        with pytest.raises(ConfigError, match=r"it does not fit \(rank 1\)"):
            policy.load_state({"student": {"w": np.ones(1, np.float32)}})
        policy.update_teacher(TeacherConfig())
        return policy.local.teacher

    assert [run_ranks(2, lead, Refusing)[0]] == [1]


def test_interrupt_of_rank_0_stops_all_ranks_between_two_rollouts() -> None:
    def lead(policy: DistributedPolicy) -> Any:
        received: list[Any] = []
        prompt = np.arange(2, dtype=np.int32)
        answers = policy.generate([prompt], SAMPLING, [[1, 2, 3, 4, 5, 6]], lambda: len(received) > 1)
        with pytest.raises(KeyboardInterrupt):
            deque(map(received.append, answers), maxlen=0)
        return len(received)

    assert run_ranks(2, lead)[0] == 2


@pytest.mark.parametrize("what", ["base", "adapter", "type"])
def test_ranks_with_another_base_type_or_adapter_are_refused(what: str) -> None:
    def part(group: RankGroup) -> Any:
        dtype = "bfloat16" if what == "type" and group.rank else "float32"
        own = Counting(float(group.rank) if what == "adapter" else 0.0, dtype)
        return DistributedPolicy(own, f"base {group.rank}" if what == "base" else "base", group)

    for error in on_threads(2, part):
        assert isinstance(error, ConfigError)
        assert "rank 1" in error.line()


def test_rank_lost_after_a_step_is_raised_before_the_next_rollouts() -> None:
    class Leaving(Counting):
        def learn(self, *args: Any, **options: Any) -> Update:
            if self.group.rank == 1 and self.weight[0] > 0:
                for line in self.group._heartbeat._connections:  # as where the machine loses its power
                    line.close()
                raise SystemExit
            return super().learn(*args, **options)

    def lead(policy: DistributedPolicy) -> Any:
        updates = [policy.learn([], ObjectiveConfig(), 1.0)]
        updates += [policy.learn([], ObjectiveConfig(), 1.0)]
        time.sleep(1.0)
        policy.update_teacher(TeacherConfig())
        with pytest.raises(RankLostError, match="rank 1 was lost"):
            list(policy.generate([], SAMPLING, []))
        return policy.local.teacher, [update.applied for update in updates]

    assert run_ranks(2, lead, Leaving)[0] == (1, [True, True])


def test_client_without_the_secret_is_refused() -> None:
    leader = heartbeat.HeartbeatServer("127.0.0.1", 2)
    welcome = threading.Thread(target=leader.accept_all, daemon=True)
    welcome.start()
    host, port, _ = leader.address
    with socket.create_connection((host, port)) as line:
        line.sendall(b"0000 1\n")
        assert line.recv(1) == b""
    assert welcome.is_alive()
    other = heartbeat.HeartbeatClient(leader.address, 1)
    welcome.join(HANG_SECONDS)
    assert not welcome.is_alive()
    other.close()
    assert leader.changed.wait(HANG_SECONDS)
    assert leader.ended
    assert not leader.lost
    leader.close()


def test_end_sent_with_the_first_line_is_no_loss() -> None:
    leader = heartbeat.HeartbeatServer("127.0.0.1", 2)
    host, port, secret = leader.address
    with socket.create_connection((host, port)) as line:
        line.sendall(f"{secret} 1\n".encode() + heartbeat.ALIVE + heartbeat.BYE)
        leader.accept_all()
        assert leader.changed.wait(HANG_SECONDS)
    assert leader.ended
    assert not leader.lost
    leader.close()


def test_end_sent_beside_unread_beats_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.0)  # beats are always unread when a connection closes
    for _ in range(20):
        leader = heartbeat.HeartbeatServer("127.0.0.1", 2)
        welcome = threading.Thread(target=leader.accept_all, daemon=True)
        welcome.start()
        other = heartbeat.HeartbeatClient(leader.address, 1)
        welcome.join(HANG_SECONDS)
        other.close()
        assert leader.changed.wait(HANG_SECONDS)
        assert leader.ended
        assert not leader.lost
        leader.close()


def test_message_between_beats_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.0)
    leader = heartbeat.HeartbeatServer("127.0.0.1", 2)
    welcome = threading.Thread(target=leader.accept_all, daemon=True)
    welcome.start()
    other = heartbeat.HeartbeatClient(leader.address, 1)
    welcome.join(HANG_SECONDS)
    sent = [b"", heartbeat.BYE, bytes(range(256)) * 4_000]
    for message in sent:
        other.send(message)
    assert [leader.messages.get(timeout=HANG_SECONDS) for _ in sent] == sent
    assert not leader.changed.is_set()
    for each in (other, leader):
        each.close()


@pytest.mark.parametrize("frozen", [False, True])
def test_rank_without_heartbeat_is_lost(frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # While beats arrive nothing may be lost: a loaded machine can delay them by seconds.
    monkeypatch.setattr(heartbeat, "SILENCE", 1.0 if frozen else 4.0)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.1)
    if frozen:
        monkeypatch.setattr(heartbeat.Heartbeat, "_send", lambda *_: None)
    leader = heartbeat.HeartbeatServer("127.0.0.1", 2)
    welcome = threading.Thread(target=leader.accept_all, daemon=True)
    welcome.start()
    other = heartbeat.HeartbeatClient(leader.address, 1)
    assert leader.changed.wait(HANG_SECONDS if frozen else 5.0) is frozen
    assert leader.lost == ("rank 1" if frozen else "")
    assert not leader.ended
    for each in (other, leader):
        each.close()


def test_process_without_a_launcher_is_a_group_of_one() -> None:
    assert open_process_group({}) is SINGLE_PROCESS
    assert open_process_group({"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "1", "RANK": "0"}) is SINGLE_PROCESS


def test_launcher_of_another_backend_is_refused() -> None:
    class Torch(type(SINGLE_PROCESS)):  # type: ignore[misc]
        size, backend = 2, "torch"

    assert backend_on(Torch(), "auto") == "torch"
    assert backend_on(SINGLE_PROCESS, "auto") == "auto"
    with pytest.raises(ConfigError, match="torchrun starts the torch backend, not mlx"):
        backend_on(Torch(), "mlx")
