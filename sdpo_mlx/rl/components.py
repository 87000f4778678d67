"""Builds the parts of a run from its configuration: task, sandbox, model, chat template, policy."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any

from sdpo_mlx import __version__
from sdpo_mlx.backends.base import CONCURRENCY, Policy, SamplingParams
from sdpo_mlx.backends.distributed.launch import backend_on
from sdpo_mlx.backends.distributed.policy import DistributedPolicy
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.backends.fit import evaluation_sizes
from sdpo_mlx.backends.memory_plan import bounded, choose, fitting, limit_of, number_bytes, settled, work_of
from sdpo_mlx.backends.preflight import FEEDBACK, bounds_memory, preflight, shares_prompts
from sdpo_mlx.backends.registry import open_policy
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.models.resolve import ResolvedModel, resolve
from sdpo_mlx.rl.agreement import NONE, Agreements, extended, measure, shares
from sdpo_mlx.rl.distillation import Batch, distillation_batch
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.data.sources import identity
from sdpo_mlx.tasks.registry import open_task
from sdpo_mlx.types import RolloutGroup

# Resuming may change these settings: they prolong, move, observe or record a run, or change only what runs at once.
# All others identify it.
AT_ONCE = ("micro_batch_tokens", "grad_checkpoint", "memory_gb")
FREE_ON_RESUME: dict[str, Any] = {
    "model": {"backend", "device", "shard", "chat_template"},  # the tokenizer's hash holds the template
    "train": {"steps", "eval_every", "eval_share", "save_every", "patience", "on_decline", "probe", *AT_ONCE},
    "rollout": {"concurrency"},
    "eval": True,
    "log": True,
    "memory": True,
}
PROMPTS_MEASURED = 256  # problems whose prompt lengths the memory plan is based on
UNCONFINED = (
    "model-written programs run unconfined: they can read this user's files and reach the network "
    "(sandbox.kind: unconfined)"
)


@dataclass(frozen=True)
class Components:
    """Everything that a run needs besides its folder.

    `cfg` is resolved: the memory plan has filled in the settings that were left open, `planned` holds those.
    """

    cfg: Config
    model: ResolvedModel
    chat: Chat
    task: Task
    policy: Policy
    sandbox: str
    self_test: Mapping[str, bool]
    planned: Mapping[str, Any] = field(default_factory=dict)

    @property
    def requested(self) -> Config:
        """The configuration without what the memory plan filled in, as `config.yaml` records it."""
        cfg = self.cfg
        for section, _, name in (key.partition(".") for key in self.planned):
            cfg = cfg.model_copy(update={section: getattr(cfg, section).model_copy(update={name: None})})
        return cfg

    @property
    def sampling(self) -> SamplingParams:
        """How rollouts are sampled in training."""
        rollout, chat = self.cfg.rollout, self.chat
        at_once = rollout.concurrency or CONCURRENCY
        return SamplingParams(
            rollout.max_tokens, rollout.temperature, rollout.top_p, chat.eos_ids, at_once, chat.at_stop_text
        )

    def distillation_batch(self, groups: Sequence[RolloutGroup], step: int, agreements: Agreements = NONE) -> Batch:
        """Build the distillation samples of one step of this run.

        Objective `auto` measures on these groups how far the self-teacher agrees with the rewards, and sets its shares
        by this and the `agreements` of earlier steps.
        """
        cfg, length, seed = self.cfg, self.policy.info.context_length, derive(self.cfg.train.seed, step)
        build = partial(distillation_batch, chat=self.chat, context_length=length, seed=seed)
        if cfg.objective.kind != "auto":
            return build(groups, teacher=cfg.teacher, objective=cfg.objective)
        known = extended(agreements, measure(self.policy, groups, cfg.teacher, build))
        batch = build(groups, teacher=cfg.teacher, objective=cfg.objective, shares=shares(known))
        return replace(batch, agreements=known)

    def identity(self) -> dict[str, Any]:
        """Return what must be equal when a run is resumed; the plan may differ, it changes memory only."""
        return {
            "base": self.model.weights_sha256,
            "tokenizer": self.chat.tokenizer_hash,
            "config": self.requested.model_dump(mode="json", exclude=FREE_ON_RESUME),
        }

    def warnings(self) -> tuple[str, ...]:
        """Return the warnings to show before the run starts, one line each."""
        unconfined = (UNCONFINED,) if self.sandbox == "unconfined" else ()
        templates = (*self.chat.source.warnings, *self.task.warnings(self.chat))
        return (*unconfined, *self.policy.warnings(), *templates)

    def start_from_student(self) -> None:
        """Make the student's weights the teacher's too, before the first step: the base would undo its training."""
        state = self.policy.state()
        self.policy.load_state({**state, "teacher": state["student"]})

    def policy_record(self) -> dict[str, Any]:
        """Return the entry of `manifest.json` on the model in training and its device."""
        info = self.policy.info
        return {**{k: v for k, v in vars(info).items() if k != "details"}, **info.details}

    def manifest(self, command: Sequence[str]) -> dict[str, Any]:
        """Return the content of `manifest.json`: inputs, versions, sandbox, seed and plan of the run."""
        return {
            **self.identity(),
            "model": self.model.record(),
            "policy": self.policy_record(),
            "data": identity(self.cfg.task.data) if self.cfg.task.data else None,
            "task_sha256": self.task.fingerprint,
            "versions": versions(),
            "sandbox": self.sandbox,
            "sandbox_self_test": dict(self.self_test),
            "seed": self.cfg.train.seed,
            "command": list(command),
            "plan": {key.partition(".")[2]: attrgetter(key)(self.cfg) for key in PLANNED},
        }

    def plan_line(self) -> str:
        """Return one line on what the memory plan chose; empty if nothing was left open."""
        if not self.planned:
            return ""
        how = "block by block" if self.cfg.train.grad_checkpoint else "one graph"
        return (
            f"plan: micro-batches of {self.cfg.train.micro_batch_tokens} tokens, "
            f"{self.cfg.rollout.concurrency} rollouts at once, {how} (`sdpo plan` shows why)"
        )


PLANNED = ("train.micro_batch_tokens", "train.grad_checkpoint", "rollout.concurrency")


def build_components(
    cfg: Config,
    group: ProcessGroup = SINGLE_PROCESS,
    *,
    task: object | None = None,
    learns: bool = True,
    dtype: str = "auto",
    start_task: StartTask = no_tasks,
) -> Components:
    """Open task and sandbox, then model, chat template and policy.

    `task` replaces the one that the configuration names. `dtype` is what `model.dtype: auto` meant when the run began
    (`runs/targets.py`). On several ranks this runs on rank 0, which sends the resolved configuration to the others
    (`serve`).

    Raises ConfigError, DataError or SandboxError, each with one line, before the model loads if possible.
    """
    backend = backend_on(group, cfg.model.backend)
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"backend": backend})})
    start_task(f"opening the task {cfg.task.name}")
    opened = open_task(cfg, task)
    problems = opened.task.problems("train")
    if not problems and (learns or not opened.task.problems("held_out")):
        fix = "give rows whose split is train, or rows without a split: one in five is held out then"
        raise DataError("the task has no training problems", where=cfg.task.data or cfg.task.name, fix=fix)
    references = any(problem.reference for problem in problems)
    if learns and cfg.teacher.demonstration == "dataset" and not references:
        where = f"teacher.demonstration: dataset, {cfg.task.data or f'task {cfg.task.name}'}"
        fix = "Give the rows a field reference, or set teacher.demonstration=first"
        raise DataError("no training row has a reference answer", where=where, fix=fix)
    start_task(f"resolving {cfg.model.name}")
    ranks = group.size if cfg.model.shard else 1
    preflight(cfg, learns=learns, ranks=ranks)
    model = resolve(cfg.model.name, start_task, backend=cfg.model.backend)
    opened.task.start(model)
    start_task(f"reading the tokenizer of {cfg.model.name}")
    chat = load_chat(model.path, thinking=cfg.model.thinking, template=cfg.model.chat_template)
    chat = chat.stopping_at(cfg.rollout.stop)
    # Recorded as a text, not as the name of a file: whatever opens the run later has the template.
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"chat_template": chat.source.setting})})
    planned = _plan(cfg, model, chat, opened.task, ranks)
    opens = planned
    if backend == "torch" and cfg.model.dtype == "auto":  # the run's settings keep `auto`
        opens = planned.model_copy(update={"model": planned.model.model_copy(update={"dtype": dtype})})
    group.broadcast(encode(opens.model_dump(mode="json")))
    start_task(f"loading {cfg.model.name}")
    policy = _policy(opens, group, model, chat)
    get = attrgetter(*PLANNED)
    filled = {key: after for key, before, after in zip(PLANNED, get(cfg), get(planned), strict=True) if before != after}
    return Components(planned, model, chat, opened.task, policy, opened.sandbox, opened.self_test, filled)


def serve(group: ProcessGroup, interrupted: Callable[[], bool]) -> None:
    """On a rank other than 0: open the model of rank 0's configuration and do this rank's share until the run ends.

    Raises RankLostError when rank 0 ends or is lost, ConfigError if the model cannot be opened here.
    """
    cfg = Config.model_validate(decode(group.broadcast(b""))[0])
    policy = _policy(cfg, group)
    assert isinstance(policy, DistributedPolicy)
    policy.serve(interrupted)


def _policy(cfg: Config, group: ProcessGroup, model: ResolvedModel | None = None, chat: Chat | None = None) -> Policy:
    """Open the policy on these ranks; every rank opens the base and its tokenizer itself."""
    with group.together():
        model = model or resolve(cfg.model.name, backend=cfg.model.backend)
        if chat is None:
            chat = load_chat(model.path, thinking=cfg.model.thinking, template=cfg.model.chat_template)
            chat = chat.stopping_at(cfg.rollout.stop)
        own = open_policy(model.path, cfg.model, cfg.teacher, cfg.train, cfg.memory, cfg.rollout, group)
    return DistributedPolicy(own, model.weights_sha256, group, chat.at_stop_text) if group.size > 1 else own


def _plan(cfg: Config, model: ResolvedModel, chat: Chat, task: Task, ranks: int = 1) -> Config:
    """Return the configuration with the open settings filled in.

    Raises ConfigError if the smallest settings would not fit into memory, before any weight is read. torch reports that
    it is out of memory, so a step that is planned too large is tried; on a CPU its sizes are fixed without a limit.
    """
    torch = cfg.model.backend == "torch"
    if torch and not bounds_memory(cfg):
        return cfg
    config = json.loads((model.path / "config.json").read_text(encoding="utf-8"))
    dims = ModelDims.of(config, str(model.path))
    sizes = lengths(chat, task, cfg, dims.context)
    shares = shares_prompts(config, "torch" if torch else "mlx")
    work = work_of(cfg, *sizes, number_bytes(cfg.model), shares=shares, ranks=ranks)
    if torch:
        return settled(cfg, choose(dims, cfg, work, limit_of(cfg)))
    chosen = fitting(dims, cfg, work, limit_of(cfg))
    return settled(cfg, bounded(chosen, evaluation_sizes(cfg, config, dims)))


def lengths(chat: Chat, task: Task, cfg: Config, context_length: int) -> tuple[int, int]:
    """Return the tokens of the longest prompt, and of a teacher context with one rollout and feedback.

    Prompts that exceed the context are skipped in training, and here.
    """
    problems = task.problems("train") or task.problems("held_out")  # a test set is evaluated only
    sizes = [chat.render(p.messages, tools=p.tools).size for p in problems[:PROMPTS_MEASURED]]
    prompt = max((size for size in sizes if size < context_length), default=1)
    return prompt, prompt + cfg.rollout.max_tokens + FEEDBACK


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {"sdpo-mlx": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in ("mlx", "mlx-lm", "numpy", "transformers", "tokenizers", "torch", "peft"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
