"""The policy of a run on several ranks: rank 0 says what to do, every rank does its share, all end up equal.

Rank 0 runs the loop, the task and the run folder; its policy is this one. The others hold the same model and serve
its calls (`serve`). Answers are shared out by rollout, gradients by sample under the *global* normalisation and
then summed, so that every rank takes the same optimizer step. State and figures cross; the weights of the base do not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from typing import Any

from sdpo_mlx.backends.base import Arrays, Policy, PolicyInfo, SamplingParams, Scores, Update, no_update
from sdpo_mlx.backends.distributed.process_group import ProcessGroup
from sdpo_mlx.backends.distributed.serialization import decode, encode, of_answers, of_samples, to_answers, to_samples
from sdpo_mlx.backends.distributed.sharding import cut
from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.core.errors import ConfigError, RankLostError
from sdpo_mlx.types import DistillSample, Generation, IntArray, Role

CHECK_EVERY = 10  # optimizer steps between two comparisons of the ranks' states
Interrupted = Callable[[], bool]
Answer = tuple[int, int, Generation]


class DistributedPolicy:
    """One policy a rank, moved together."""

    def __init__(self, own: Policy, world: ProcessGroup) -> None:
        self.own, self.world, self.steps = own, world, 0
        # Between a batch's first step and the next batch a lost rank is only noted: the batch ends on this rank
        # alone, so that what is then saved is the state after a whole step.
        self._moved = False
        self._lost: RankLostError | None = None

    @property
    def info(self) -> PolicyInfo:
        """What this policy is; the device says on how many ranks."""
        info = self.own.info
        return replace(info, device=f"{info.device} x {self.world.size}")

    def generate(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted = lambda: False,
    ) -> Iterator[Answer]:
        """See `Policy.generate`; what other ranks sampled comes after this one's."""
        self._moved = False
        if self._lost is not None:
            raise self._lost
        plain = {**asdict(sampling), "eos_ids": sorted(sampling.eos_ids)}
        rows = [[int(seed) for seed in row] for row in seeds]
        with self._told("generate", [plain, rows], {str(i): prompt for i, prompt in enumerate(prompts)}):
            fault: KeyboardInterrupt | None = None
            try:
                yield from self._share(prompts, sampling, rows, interrupted)
            except KeyboardInterrupt as error:
                fault = error

            def part() -> bytes:
                if fault is not None:
                    raise fault
                return b""

            others = self._collected(self.world.together(part))
        yield from others

    def stream(self, prompt: IntArray, sampling: SamplingParams, seed: int) -> Iterator[int]:
        """See `Policy.stream`; rank 0 alone."""
        return self.own.stream(prompt, sampling, seed)

    def score(
        self, role: Role, sequences: Sequence[IntArray], spans: Sequence[tuple[int, int]], top_k: int = 0
    ) -> list[Scores]:
        """See `Policy.score`; rank 0 alone."""
        return self.own.score(role, sequences, spans, top_k)

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
        rows, arrays = of_samples(samples)
        try:
            with self._told("learn", [rows, objective.model_dump(mode="json"), learning_rate, temperature], arrays):
                return self._learn(samples, objective, learning_rate, temperature, interrupted)
        except RankLostError as error:
            if not self._moved:
                raise
            self._lost = error
            return no_update("rank_lost")

    def update_teacher(self, teacher: TeacherConfig) -> None:
        """See `Policy.update_teacher`."""
        try:
            with self._told("update_teacher", teacher.model_dump(mode="json")):
                pass
        except RankLostError as error:
            self._lost = error
        self.own.update_teacher(teacher)

    def state(self) -> Mapping[str, Arrays]:
        """See `Policy.state`; rank 0's, which is every rank's."""
        return self.own.state()

    def load_state(self, state: Mapping[str, Arrays]) -> None:
        """See `Policy.load_state`; on every rank."""
        with self._told("load_state", None, _flat(state)):
            self.world.together(lambda: self.own.load_state(state))

    def load_student(self, arrays: Arrays) -> None:
        """See `Policy.load_student`; on every rank."""
        with self._told("load_student", None, arrays):
            self.world.together(lambda: self.own.load_student(arrays))

    def adapter_config(self) -> dict[str, Any]:
        """See `Policy.adapter_config`."""
        return self.own.adapter_config()

    def memory(self) -> dict[str, int]:
        """See `Policy.memory`; rank 0's."""
        return self.own.memory()

    def serve(self, interrupted: Interrupted = lambda: False) -> None:
        """On another rank: do what rank 0 says until it says that this is the end; raises RankLostError without."""
        while True:
            (kind, plain), arrays = decode(self.world.broadcast(b""))
            if kind == "end":
                return
            # What stops one part is told to rank 0, which decides what becomes of the run.
            with suppress(KeyboardInterrupt, ConfigError):
                self._serve(kind, plain, arrays, interrupted)

    def _serve(self, kind: str, plain: Any, arrays: Mapping[str, Any], interrupted: Interrupted) -> None:
        if kind == "generate":
            sampling = SamplingParams(**{**plain[0], "eos_ids": frozenset(plain[0]["eos_ids"])})
            self._answer([arrays[str(i)] for i in range(len(plain[1]))], sampling, plain[1], interrupted)
        elif kind == "learn":
            samples, objective = to_samples(plain[0], arrays), ObjectiveConfig(**plain[1])
            self._learn(samples, objective, plain[2], plain[3], interrupted)
        elif kind == "update_teacher":
            self.own.update_teacher(TeacherConfig(**plain))
        elif kind == "load_state":
            self.world.together(lambda: self.own.load_state(_nested(arrays)))
        elif kind == "load_student":
            self.world.together(lambda: self.own.load_student(arrays))

    @contextmanager
    def _told(self, kind: str, plain: Any, arrays: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Say what all do now; afterwards the others wait again, unless something broke that they don't know of."""
        self.world.quiet = False
        self.world.broadcast(encode([kind, plain], arrays))
        try:
            yield
        except (KeyboardInterrupt, ConfigError):
            self.world.quiet = True
            raise
        self.world.quiet = True

    def _share(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted,
    ) -> Iterator[Answer]:
        """This rank's answers, in the places that they have among all."""
        places = [(at, n) for at, row in enumerate(seeds) for n in range(len(row))]
        own = [places[i] for i in cut([1.0] * len(places), self.world.size)[self.world.rank]]
        mine = {at: [n for each, n in own if each == at] for at in dict.fromkeys(at for at, _ in own)}
        asked = [prompts[at] for at in mine], sampling, [[seeds[at][n] for n in rows] for at, rows in mine.items()]
        back = list(mine.items())
        for i, k, answer in self.own.generate(*asked, interrupted):
            yield back[i][0], back[i][1][k], answer

    def _answer(
        self,
        prompts: Sequence[IntArray],
        sampling: SamplingParams,
        seeds: Sequence[Sequence[int]],
        interrupted: Interrupted,
    ) -> None:
        """Another rank's side of `generate`."""

        def part() -> bytes:
            return encode(*of_answers(list(self._share(prompts, sampling, seeds, interrupted))))

        self._collected(self.world.together(part))

    def _collected(self, own: bytes) -> list[Answer]:
        """What all ranks but this one's own empty word said."""
        return [answer for each in self.world.gather(own) if each for answer in to_answers(*decode(each))]

    def _learn(
        self,
        samples: Sequence[DistillSample],
        objective: ObjectiveConfig,
        learning_rate: float,
        temperature: float,
        interrupted: Interrupted,
    ) -> Update:
        update = self.own.learn(samples, objective, learning_rate, temperature=temperature, interrupted=interrupted)
        self.steps, self._moved = self.steps + 1, self._moved or update.applied
        if self.steps % CHECK_EVERY:
            return update
        try:
            return replace(update, warnings=(*update.warnings, *self._compared()))
        except RankLostError as error:
            self._lost = error
            return update

    def _compared(self) -> tuple[str, ...]:
        """Give every rank the state of rank 0 where one differs, and a word about it."""
        digests = [each.hex() for each in self.world.gather(digest(self.own.state()))]
        astray = [rank for rank, each in enumerate(digests) if each != digests[0]]
        if not astray:
            return ()
        state = encode(None, _flat(self.own.state())) if self.world.rank == 0 else b""
        heard = decode(self.world.broadcast(state))[1]
        if self.world.rank in astray:
            self.own.load_state(_nested(heard))
        names = ", ".join(f"rank {rank}" for rank in astray)
        return (f"{names} had come to other weights than rank 0, and was given rank 0's",)


def joined(own: Policy, weights: str, world: ProcessGroup) -> DistributedPolicy:
    """The policy of all ranks; `weights` is the hash of the base, which all must hold.

    Raises ConfigError where a rank has another base or begins with other adapters.
    """
    heard = [decode(each)[0] for each in world.gather(encode([weights, digest(own.state()).hex()]))]
    for rank, (base, start) in enumerate(heard):
        if base != heard[0][0]:
            raise ConfigError(
                "this rank holds other weights of the base", where=f"rank {rank}", fix="fetch it again there"
            )
        if start != heard[0][1]:
            raise ConfigError(
                "this rank begins with another adapter", where=f"rank {rank}", fix="install equal versions"
            )
    policy = DistributedPolicy(own, world)
    world.quiet = True
    own.world = world  # type: ignore[attr-defined]  # both backends' policies have one
    return policy


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
