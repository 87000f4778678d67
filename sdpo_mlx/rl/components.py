"""From a configuration to the parts of a run: task and sandbox first, then the model, its chat and its policy."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from sdpo_mlx import __version__
from sdpo_mlx.backends.base import Policy
from sdpo_mlx.backends.distributed.policy import DistributedPolicy, joined
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.backends.distributed.serialization import decode, encode
from sdpo_mlx.backends.memory_plan import fitting, limit_of, settled, work_of
from sdpo_mlx.backends.registry import backend_on, open_policy
from sdpo_mlx.config import Config
from sdpo_mlx.core.errors import DataError
from sdpo_mlx.core.hardware import number_bytes
from sdpo_mlx.core.progress import StartTask, no_tasks
from sdpo_mlx.models import resolve
from sdpo_mlx.models.chat_template import Chat, load_chat
from sdpo_mlx.models.dimensions import ModelDims
from sdpo_mlx.tasks.base import Task
from sdpo_mlx.tasks.data.sources import identity
from sdpo_mlx.tasks.judge.server import serve_where_needed
from sdpo_mlx.tasks.registry import open_task

# A run may be continued for longer, elsewhere, looked at more often and kept in more detail; the rest would change it.
FREE_ON_RESUME: dict[str, Any] = {
    "model": {"backend", "device"},
    "train": {"steps", "eval_every", "save_every", "patience"},
    "eval": True,
    "log": True,
}
LOOKED_AT = 256  # problems whose prompts are measured for the plan
FEEDBACK_TOKENS = 512
UNCONFINED = (
    "programs that the model writes run unconfined: they can read this user's files and reach the network "
    "(sandbox.kind: unconfined)"
)


@dataclass(frozen=True)
class Components:
    """Everything a run needs besides its folder."""

    cfg: Config
    model: resolve.ResolvedModel
    chat: Chat
    task: Task
    policy: Policy
    sandbox: str
    self_test: Mapping[str, bool]
    settled: Config  # the settings with what the plan filled in where they leave it open

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed."""
        return {
            "base": self.model.weights_sha256,
            "tokenizer": self.chat.tokenizer_hash,
            "config": self.cfg.model_dump(mode="json", exclude=FREE_ON_RESUME),
        }

    def warnings(self) -> tuple[str, ...]:
        """What whoever starts this should know first, each in one line."""
        return (UNCONFINED,) if self.sandbox == "unconfined" else ()

    def policy_record(self) -> dict[str, Any]:
        """What `manifest.json` says of the model in training and what it runs on."""
        info = self.policy.info
        return {**{k: v for k, v in vars(info).items() if k != "details"}, **info.details}

    def manifest(self, command: list[str]) -> dict[str, Any]:
        """What `manifest.json` says of where and with what the run was made."""
        return {
            **self.identity(),
            "model": self.model.record(),
            "policy": self.policy_record(),
            "data": identity(self.cfg.task.data) if self.cfg.task.data else None,
            "task_sha256": getattr(self.task, "fingerprint", None),  # of a file of one's own
            "versions": versions(),
            "sandbox": self.sandbox,
            "sandbox_self_test": dict(self.self_test),
            "seed": self.cfg.train.seed,
            "command": command,
            "plan": self.chosen(),
        }

    def plan_line(self) -> str:
        """What the plan chose, for whoever starts this; empty where nothing was left open or torch finds its own."""
        train, rollout = self.settled.train, self.settled.rollout
        if self.settled == self.cfg:
            return ""
        how = "block by block" if train.grad_checkpoint else "one graph"
        return (
            f"plan: micro-batches of {train.micro_batch_tokens} tokens, {rollout.concurrency} answers at once, {how} "
            "(`sdpo plan` shows why)"
        )

    def chosen(self) -> dict[str, Any]:
        """What was left open in the settings, and what became of it."""
        train, rollout = self.settled.train, self.settled.rollout
        return {
            "micro_batch_tokens": train.micro_batch_tokens,
            "grad_checkpoint": train.grad_checkpoint,
            "concurrency": rollout.concurrency,
        }


def build_components(
    cfg: Config, world: ProcessGroup = SINGLE_PROCESS, *, learns: bool = True, doing: StartTask = no_tasks
) -> Components:
    """Open all parts; the sandbox fails before the model loads, and so does what would have nothing to learn from.

    On several ranks this is rank 0's: the others hear the settings from it and open the model alone (`serve`).
    Raises ConfigError, DataError or SandboxError, each with one line.
    """
    cfg = _placed(cfg, world)
    doing(f"opening the task {cfg.task.name}")
    opened = open_task(cfg)
    if not opened.task.problems("train"):
        raise DataError("the task has no training problems", where=cfg.task.data or cfg.task.name)
    if learns:
        _check_references(cfg, opened.task)
    doing(f"looking for {cfg.model.name}")
    model = resolve.resolve(cfg.model.name, doing)
    serve_where_needed(opened.task, model)
    doing(f"reading the tokenizer of {cfg.model.name}")
    chat = load_chat(model.path, thinking=cfg.model.thinking)
    settled = _settled(cfg, model, chat, opened.task)
    world.broadcast(encode(settled.model_dump(mode="json")))
    doing(f"loading {cfg.model.name}")
    policy = _policy(settled, model, world)
    return Components(cfg, model, chat, opened.task, policy, opened.sandbox, opened.self_test, settled)


def _check_references(cfg: Config, task: Task) -> None:
    """Raises DataError where demonstrations shall come from the rows and none has one."""
    if cfg.teacher.demonstration != "dataset" or any(problem.reference for problem in task.problems("train")):
        return
    where = f"teacher.demonstration: dataset, {cfg.task.data or f'task {cfg.task.name}'}"
    fix = "give the rows a field reference, or set teacher.demonstration=first"
    raise DataError("no training row has a reference answer", where=where, fix=fix)


def serve(world: ProcessGroup, interrupted: Callable[[], bool]) -> None:
    """On a rank other than 0: open the model of rank 0's settings, and do this rank's share until the run ends.

    Raises RankLostError when rank 0 ends or is lost, ConfigError where the model cannot be opened here.
    """
    cfg = Config.model_validate(decode(world.broadcast(b""))[0])
    policy = _policy(cfg, None, world)
    assert isinstance(policy, DistributedPolicy)
    policy.serve(interrupted)


def _policy(cfg: Config, model: resolve.ResolvedModel | None, world: ProcessGroup) -> Policy:
    """The policy of these ranks; every rank opens the base for itself."""

    def opened() -> tuple[Policy, str]:
        found = model or resolve.resolve(cfg.model.name)
        return open_policy(found.path, cfg.model, cfg.teacher, cfg.train), found.weights_sha256

    own, weights = world.together(opened)
    return joined(own, weights, world) if world.size > 1 else own


def _settled(cfg: Config, model: resolve.ResolvedModel, chat: Chat, task: Task) -> Config:
    """The settings as the plan completes them; torch finds its sizes while it runs.

    Raises ConfigError where the smallest settings would not fit into memory, before any weight is read.
    """
    if cfg.model.backend == "torch":
        return cfg
    shape = ModelDims.of(json.loads((model.path / "config.json").read_text(encoding="utf-8")), str(model.path))
    work = work_of(cfg, *lengths(chat, task, cfg, shape.context), number_bytes(cfg.model))
    return settled(cfg, fitting(shape, cfg, work, limit_of(cfg)))


def lengths(chat: Chat, task: Task, cfg: Config, context_length: int) -> tuple[int, int]:
    """Tokens of the longest prompt (of the first few hundred), and of a teacher's context with answer and feedback.

    Prompts that the model cannot take are skipped in training, and here.
    """
    sizes = [chat.render(each.messages, tools=each.tools).size for each in task.problems("train")[:LOOKED_AT]]
    prompt = max((size for size in sizes if size < context_length), default=1)
    return prompt, prompt + cfg.rollout.max_tokens + FEEDBACK_TOKENS


def _placed(cfg: Config, world: ProcessGroup) -> Config:
    backend = backend_on(world, cfg.model.backend)
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"backend": backend})})


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    found = {"sdpo-mlx": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in ("mlx", "mlx-lm", "numpy", "transformers", "tokenizers", "torch", "peft"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
