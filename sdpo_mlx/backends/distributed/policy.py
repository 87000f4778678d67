"""The policy of a run on several ranks: rank 0 broadcasts each call, every rank does its share, all end up equal.

Rank 0 runs the loop, the task and the run folder; its policy is this one. The others hold the same model and serve
its calls (`serve`). Rollouts are shared here; the gradient is shared inside `Learner.learn`, by sample, under the
*global* normalisation. State and figures are sent; the weights of the base are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from sdpo_mlx.backends.base import Arrays, PolicyInfo, SamplingParams, Scores, Update, never, no_update
from sdpo_mlx.backends.distributed.process_group import ProcessGroup
from sdpo_mlx.backends.distributed.serialization import (
    decode,
    decode_rollouts,
    decode_samples,
    encode,
    encode_rollouts,
    encode_samples,
)
from sdpo_mlx.backends.distributed.sharding import cut
from sdpo_mlx.backends.learner import Interrupted, Learner, Rollout
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.core.errors import ConfigError, RankLostError, SelfTestError
from sdpo_mlx.types import DistillSample, IntArray, Role

CHECK_EVERY = 10  # optimizer steps between two comparisons of the ranks' states


class DistributedPolicy:
    """One local policy per rank, kept equal. `base_hash` is the hash of the base model, which all ranks must hold.

    `at_stop_text` replaces the one of `SamplingParams` on ranks other than 0: it is code, which is not sent.
    Raise ConfigError if a rank holds another base, or in another type, or starts with another adapter.
    """

    def __init__(
        self,
        local: Learner,
        base_hash: str,
        group: ProcessGroup,
        at_stop_text: Callable[[Sequence[int]], bool] = never,
    ) -> None:
        self.local, self.group, self.steps, self.at_stop_text = local, group, 0, at_stop_text
        self._calls = 0  # of `generate`
        self._sampling = 0  # other ranks that still send rollouts of this call
        # Rank 0 alone does these; its state is every rank's.
        self.state = local.state
        self.adapter_config, self.memory = local.adapter_config, local.memory
        self.pass_sizes, self.limit_pass = local.pass_sizes, local.limit_pass
        # Between a batch's first step and the next batch a lost rank is only recorded: rank 0 finishes the batch
        # alone, so that what is then saved is the state after a whole step.
        self._stepped = False
        self._lost: RankLostError | None = None
        own = encode([base_hash, digest(local.state()).hex(), local.info.dtype])
        received = [decode(each)[0] for each in group.gather(own)]
        for rank, (base, start, dtype) in enumerate(received):
            if dtype != received[0][2]:  # `auto` depends on the processor
                what = f"this rank holds the weights in {dtype}, rank 0 in {received[0][2]}"
                raise ConfigError(what, where=f"rank {rank}", fix="set model.dtype=float32")
            if base != received[0][0]:
                fix = "fetch the model again there"
                raise ConfigError("this rank holds other weights of the base", where=f"rank {rank}", fix=fix)
            if start != received[0][1]:
                fix = "install equal versions on all ranks"
                raise ConfigError("this rank starts with another adapter", where=f"rank {rank}", fix=fix)
        local.group = group
        group.idle = True

    @property
    def info(self) -> PolicyInfo:
        """See `Policy.info`; the device includes the number of ranks."""
        info = self.local.info
        return replace(info, device=f"{info.device} x {self.group.size}")

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted = lambda: False,
    ) -> Iterator[Rollout]:
        """See `Policy.generate`; the other ranks send each rollout as it ends, so that grading need not wait."""
        self._stepped = False
        if self._lost is not None:
            raise self._lost
        plain = {**vars(sampling), "eos_ids": sorted(sampling.eos_ids)}
        del plain["at_stop_text"]
        rows = [[int(seed) for seed in row] for row in seeds]
        self._calls += 1
        given = {str(i): prompt for i, prompt in enumerate(prompts)}
        with self._on_all_ranks("generate", [self._calls, plain, rows], given), self.group.together():
            self._sampling = self.group.size - 1
            for rollout in self._own_rollouts(prompts, sampling, rows, interrupted):
                yield rollout
                yield from self._others_rollouts(wait=False)
            if self.group.join is None:
                yield from self._others_rollouts(wait=True, interrupted=interrupted)
        # Ranks that run passes together leave together: only what they have sent is still to be read.
        yield from self._others_rollouts(wait=True)

    def _others_rollouts(self, *, wait: bool, interrupted: Interrupted = lambda: False) -> Iterator[Rollout]:
        """The rollouts that other ranks have sent; with `wait` until they send no more."""
        while self._sampling:
            message = self.group.receive(block=wait)
            if message is None:
                if not wait:
                    return
                if interrupted():
                    raise KeyboardInterrupt
                continue
            (call, rollouts), arrays = decode(message)
            if call == self._calls:  # otherwise of a call that was interrupted
                self._sampling -= not rollouts
                yield from decode_rollouts(rollouts, arrays)

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`; on rank 0 alone."""
        with self._alone():
            yield from self.local.stream(prompt, sampling, seed)

    def score(
        self,
        role: Role,
        sequences: Sequence[IntArray],
        spans: Sequence[tuple[int, int]],
        top_k: int = 0,
        temperature: float = 1.0,
    ) -> list[Scores]:
        """See `Policy.score`; on rank 0 alone."""
        with self._alone():
            return self.local.score(role, sequences, spans, top_k, temperature)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Run a block on rank 0; the others join its passes if that takes all ranks."""
        if self.group.join is None:
            yield
            return
        with self._on_all_ranks("join", None), self.group.together():
            yield

    def learn(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        learning_rate: float,
        *,
        temperature: float = 1.0,
        interrupted: Interrupted = lambda: False,
    ) -> Update:
        """See `Policy.learn`; every `CHECK_EVERY` steps the ranks' states are compared."""
        rows, arrays = encode_samples(samples)
        plain = [rows, objective.model_dump(mode="json"), learning_rate, temperature]
        try:
            with self._on_all_ranks("learn", plain, arrays):
                return self._learn(samples, objective, learning_rate, temperature, interrupted)
        except RankLostError as error:
            if not self._stepped:
                raise
            self._lost = error
            return no_update("rank_lost")

    def warnings(self) -> tuple[str, ...]:
        """See `Policy.warnings`."""
        return self.local.warnings()

    def check_gradient(self, *, slope: bool = True) -> tuple[str, ...]:
        """See `Policy.check_gradient`; every rank checks its machine, rank 0 the weights, which all have."""
        with self._on_all_ranks("check_gradient", None), self.group.together():
            return self.local.check_gradient(slope=slope)

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """See `Policy.update_teacher`."""
        try:
            with self._on_all_ranks("update_teacher", teacher.model_dump(mode="json")):
                pass
        except RankLostError as error:
            self._lost = error
        self.local.update_teacher(teacher)

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """See `Policy.load_state`; on every rank."""
        with self._on_all_ranks("load_state", None, _flat(state)), self.group.together():
            self.local.load_state(state)

    def load_student(self, arrays: Arrays) -> None:
        """See `Policy.load_student`; on every rank."""
        with self._on_all_ranks("load_student", None, arrays), self.group.together():
            self.local.load_student(arrays)

    def serve(self, interrupted: Interrupted = lambda: False) -> None:
        """On another rank: run rank 0's calls until it ends the group. Raise RankLostError if rank 0 disappears."""
        while True:
            (kind, plain), arrays = decode(self.group.broadcast(b""))
            if kind == "end":
                return
            # Rank 0 receives what stops a call here, and decides what becomes of the run.
            with suppress(KeyboardInterrupt, ConfigError, SelfTestError):
                self._serve(kind, plain, arrays, interrupted)

    def _serve(self, kind: str, plain: Any, arrays: Mapping[str, Any], interrupted: Interrupted) -> None:
        if kind == "generate":
            call, given, seeds = plain
            sampling = SamplingParams(
                **{**given, "eos_ids": frozenset(given["eos_ids"])}, at_stop_text=self.at_stop_text
            )
            prompts = [arrays[str(i)] for i in range(len(seeds))]
            with self.group.together():
                try:
                    for rollout in self._own_rollouts(prompts, sampling, seeds, interrupted):
                        found, tokens = encode_rollouts([rollout])
                        self.group.send(encode([call, found], tokens))
                finally:
                    self.group.send(encode([call, []]))  # whatever happened, rank 0 waits for no more
        elif kind == "learn":
            samples, objective = decode_samples(plain[0], arrays), ObjectiveConfig(**plain[1])
            self._learn(samples, objective, plain[2], plain[3], interrupted)
        elif kind == "update_teacher":
            self.local.update_teacher(TeacherConfig(**plain))
        elif kind == "join":
            with self.group.together():
                pass
        else:
            with self.group.together():
                if kind == "check_gradient":
                    self.local.check_gradient(slope=False)
                elif kind == "load_state":
                    self.local.load_state(_nested(arrays))
                else:
                    self.local.load_student(arrays)

    @contextmanager
    def _on_all_ranks(self, kind: str, plain: Any, arrays: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Start a call on all ranks; afterwards the others wait again, unless this one failed on its own."""
        self.group.idle = False
        self.group.broadcast(encode([kind, plain], arrays))
        try:
            yield
        except (KeyboardInterrupt, ConfigError, SelfTestError):
            self.group.idle = True
            raise
        self.group.idle = True

    def _own_rollouts(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted,
    ) -> Iterator[Rollout]:
        """This rank's rollouts, at the places that they have among all."""
        places = [(at, n) for at, row in enumerate(seeds) for n in range(len(row))]
        own = [places[i] for i in cut([1.0] * len(places), self.group.size)[self.group.rank]]
        chosen = [(at, [n for _, n in group]) for at, group in groupby(own, key=itemgetter(0))]
        own_prompts = [prompts[at] for at, _ in chosen]
        own_seeds = [[seeds[at][n] for n in rows] for at, rows in chosen]
        for i, k, rollout in self.local.generate(own_prompts, sampling, own_seeds, interrupted):
            yield chosen[i][0], chosen[i][1][k], rollout

    def _learn(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        learning_rate: float,
        temperature: float,
        interrupted: Interrupted,
    ) -> Update:
        update = self.local.learn(samples, objective, learning_rate, temperature=temperature, interrupted=interrupted)
        self.steps, self._stepped = self.steps + 1, self._stepped or update.applied
        if self.steps % CHECK_EVERY:
            return update
        try:
            return replace(update, warnings=(*update.warnings, *self._synchronized()))
        except RankLostError as error:
            self._lost = error
            return update

    def _synchronized(self) -> tuple[str, ...]:
        """Load rank 0's state on all ranks that differ from it. Return a warning that names them."""
        digests = [each.hex() for each in self.group.gather(digest(self.local.state()))]
        diverged = [rank for rank, each in enumerate(digests) if each != digests[0]]
        if not diverged:
            return ()
        state = encode(None, _flat(self.local.state())) if self.group.rank == 0 else b""
        received = decode(self.group.broadcast(state))[1]
        if self.group.rank in diverged:
            self.local.load_state(_nested(received))
        names = ", ".join(f"rank {rank}" for rank in diverged)
        return (f"{names} diverged from rank 0; its state was reset to rank 0's",)


def digest(state: Mapping[str, Arrays]) -> bytes:
    """SHA-256 of a state's names and bytes."""
    found = hashlib.sha256()
    for name, array in sorted(_flat(state).items()):
        found.update(name.encode())
        found.update(array.tobytes())
    return found.digest()


def _flat(state: Mapping[str, Arrays]) -> dict[str, Any]:
    return {f"{part}/{name}": array for part, arrays in state.items() for name, array in arrays.items()}


def _nested(arrays: Arrays) -> dict[str, dict[str, Any]]:
    state: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        part, _, name = key.partition("/")
        state.setdefault(part, {})[name] = array
    return state
