"""The Python API: train, evaluate, compare, sample and export from a script or a notebook.

The names that users need are importable from `sdpo_mlx` itself; the command line calls the same functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, Unpack

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from sdpo_mlx.config import Config
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.interrupt import Interrupt
from sdpo_mlx.core.progress import ProgressCallback, StartTask, no_progress, no_tasks
from sdpo_mlx.core.storage import write_text
from sdpo_mlx.evaluation.compare import Comparison, compare
from sdpo_mlx.evaluation.evaluate import EvalDocument, score
from sdpo_mlx.rl.components import Components, build_components
from sdpo_mlx.runs.conversation import ChatModel, Conversation
from sdpo_mlx.runs.events import read_events
from sdpo_mlx.runs.export import formats
from sdpo_mlx.runs.export.formats import Exported
from sdpo_mlx.runs.folder import RunFolder
from sdpo_mlx.runs.report.collect import read_runs
from sdpo_mlx.runs.report.html import page
from sdpo_mlx.runs.targets import kept_dtype, run_config, with_kept_template
from sdpo_mlx.runs.tracking.manager import check
from sdpo_mlx.tasks.registry import IN_MEMORY
from sdpo_mlx.trainer import fit
from sdpo_mlx.training.final_scores import TrainingResult
from sdpo_mlx.training.session import OnEvent

Callback = Callable[[Mapping[str, Any]], None]
ExportFormat = Literal["peft", "fused", "gguf", "gguf-lora"]


class Options(TypedDict, total=False):
    """Settings with names of their own, those of the options of `sdpo train`; any other goes into `settings`."""

    data: str | Path
    config: str | Path
    steps: int
    learning_rate: float
    group_size: int
    max_tokens: int
    objective: str
    teacher: str
    backend: str
    seed: int
    sandbox: str


KEYS: Mapping[str, str] = {
    "data": "task.data",
    "steps": "train.steps",
    "learning_rate": "train.learning_rate",
    "group_size": "rollout.group_size",
    "max_tokens": "rollout.max_tokens",
    "objective": "objective.kind",
    "teacher": "teacher.kind",
    "backend": "model.backend",
    "seed": "train.seed",
    "sandbox": "sandbox.kind",
}


class Display(Protocol):
    """What is shown of a run while it opens and trains."""

    def opening(self, cfg: Config, /) -> AbstractContextManager[StartTask]:
        """Show that the components are being opened."""

    def training(
        self, components: Components, folder: RunFolder, interrupted: Callable[[], bool], /
    ) -> AbstractContextManager[tuple[OnEvent, StartTask]]:
        """Show the training; return what receives its events and its tasks."""


def train(
    model: str = "tiny",
    task: object = "tiny",
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    **options: Unpack[Options],
) -> Run:
    """Train a model on a task, or resume the run in `out`, and return the run.

    `task` is a name, a file, an object with `problems` and `grade`, or a pair of functions `(problems, grade)`.
    `settings` are dotted keys as in `sdpo config show`. Each callback receives every event as a dict. `progress` shows
    a progress bar, in notebooks too. Ctrl-C (in a notebook: interrupt the kernel) saves the state and raises
    KeyboardInterrupt; the same call resumes.

    Raises ConfigError, DataError, SandboxError, StorageError or DivergedError, each with a one-line message.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise ConfigError(f"unknown option {sorted(unknown)[0]!r}", fix='Write settings={"section.key": value}')
    file = options.pop("config", None)
    flags: dict[str, Any] = {KEYS[name]: value for name, value in options.items() if value is not None}
    if "task.data" in flags:
        flags["task.data"] = str(flags["task.data"])
    name, own = _task(task)
    given = {**flags, "model.name": model, "task.name": name, **(settings or {})}
    cfg = resolve(Path(file) if file is not None else None, (), given, python=True).config
    run = Run(Path(out) if out is not None else default_out(cfg), cfg, task=own)
    display = ProgressBar(callbacks) if progress else Silent(callbacks)
    with Interrupt(leave=_raise) as interrupt:
        run.result, run._components = run_training(run.config, run.path, display, interrupt, task=own)
    return run


def load_run(path: str | Path, task: object = None) -> Run:
    """Return the run in a folder; `task` is needed for evaluation if the run was trained on a Python object.

    Raises ConfigError if there is no run.
    """
    return Run(Path(path), run_config(Path(path)), task=None if isinstance(task, str | None) else task)


class Run:
    """A run folder: its configuration and events, and the model with the run's best adapter.

    The model is loaded when it is first needed and stays in memory until `close`.
    """

    def __init__(self, path: Path, config: Config, *, task: object = None) -> None:
        self.path, self.config = path, config
        self.result: TrainingResult | None = None  # of the training that returned this run
        self._task, self._components = task, None  # type: tuple[object, Components | None]

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, model={self.config.model.name!r}, task={self.config.task.name!r})"

    @property
    def events(self) -> list[dict[str, Any]]:
        """All events of the run so far, as in `events.jsonl`."""
        return list(read_events(self.path / "events.jsonl"))

    def evaluate(self, *, on_progress: ProgressCallback = no_progress) -> EvalDocument:
        """Return the best adapter's score on the held-out problems; rollouts come from the cache if possible."""
        return score(self._opened(), str(self.path), self.path, on_progress=on_progress)

    def compare(self, other: Run | None = None) -> Comparison:
        """Return the difference to another run, or to the untouched model, paired by problem.

        The result's `sentence()` says whether it can be believed.
        """
        if other is not None:
            return compare(self.evaluate(), other.evaluate())
        self.close()
        self._components = self._built()
        base = score(self._components, f"the base of {self.path}", None)
        self._components.policy.load_student(RunFolder(self.path).load_adapter()[0])
        return compare(base, self.evaluate())

    def generate(self, prompt: str, *, max_tokens: int | None = None, temperature: float = 0.0) -> str:
        """Return the model's answer to a prompt, with the best adapter; temperature 0 is greedy."""
        parts = self._opened()
        sampling = SamplingParams(max_tokens or self.config.rollout.max_tokens, temperature, 1.0, parts.chat.eos_ids)
        conversation = Conversation(ChatModel.of(parts, sampling), "model")
        for _ in conversation.ask(prompt):
            pass
        return conversation.last.text

    def export(
        self,
        to: ExportFormat = "peft",
        out: str | Path | None = None,
        *,
        kind: Literal["F16", "BF16", "Q8_0"] = "F16",
        scale: float = 1.0,
    ) -> Exported:
        """Export the best adapter into a new folder, by default beside the run; the result says how to use it.

        A LoRA is multiplied by `scale`; a smaller one forgets less.
        Raises ConfigError if the folder exists or the adapter has no such form.
        """
        place = Path(out) if out is not None else self.path.with_name(f"{self.path.resolve().name}-{to}")
        return formats.export(self.path, to, place, formats.ExportOptions(kind=kind, scale=scale))

    def report(self, out: str | Path | None = None) -> Path:
        """Write the HTML report, by default into the run folder, and return its path."""
        return write_report([self.path], Path(out) if out is not None else None)

    def close(self) -> None:
        """Release the model, and what the task started; the next call that needs the model loads it again."""
        if self._components is not None:
            self._components.task.close()
        self._components = None

    def _opened(self) -> Components:
        if self._components is None:
            # Read first, so that a missing adapter is an error before a large model loads.
            arrays, _ = RunFolder(self.path).load_adapter()
            self._components = self._built()
            self._components.policy.load_student(arrays)
        return self._components

    def _built(self) -> Components:
        # The file of the chat template may be gone since the training that returned this run.
        cfg = with_kept_template(self.config, self.path)
        return build_components(cfg, task=self._task, learns=False, dtype=kept_dtype(self.path))


def run_training(
    cfg: Config,
    out: Path,
    display: Display,
    interrupt: Interrupt,
    *,
    task: object | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
    command: Sequence[str] = (),
) -> tuple[TrainingResult, Components]:
    """Open the components and train in the folder `out`, which stays locked meanwhile.

    A folder that was made for nothing is removed again. Raises KeyboardInterrupt with the state saved.
    """
    check(cfg.log.sinks)
    existed = out.exists()
    folder = RunFolder.open(out)
    try:
        cfg = with_kept_template(cfg, out)
        with display.opening(cfg) as start_task:
            components = build_components(cfg, group, task=task, dtype=kept_dtype(out), start_task=start_task)
        with display.training(components, folder, interrupt.requested) as (on_event, start_task):
            result = fit(components, folder, on_event, interrupt.requested, command=command, start_task=start_task)
    finally:
        folder.close()
        if not existed:
            folder.remove_if_unused()
    return result, components


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Write one HTML report on several runs, by default into the folder of the first, and return its path."""
    place = out or runs[0] / "report.html"
    write_text(place, page(read_runs(runs)))
    return place


def default_out(cfg: Config) -> Path:
    """Return `runs/<model>-<task>-seed<n>`, in characters that every file system takes; a file's task without its path.

    With an adapter to start from, `runs/<its folder>-next`.
    """
    if cfg.model.adapter.start is not None:
        return Path("runs") / f"{Path(cfg.model.adapter.start).name[:115]}-next"
    model = Path(cfg.model.name).name if cfg.model.name.startswith((".", "/", "~")) else cfg.model.name
    file, is_file, variant = cfg.task.name.partition(".py")
    task = f"{Path(file).name}{variant}" if is_file else cfg.task.name
    name = f"{model}-{task}-seed{cfg.train.seed}"
    return Path("runs") / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:120] or "run")


class Silent:
    """Shows nothing; passes events to callbacks."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = callbacks

    def opening(self, _cfg: Config, /) -> AbstractContextManager[StartTask]:
        """See `Display.opening`."""
        return nullcontext(no_tasks)

    def training(
        self, _components: Components, _folder: RunFolder, _interrupted: Callable[[], bool], /
    ) -> AbstractContextManager[tuple[OnEvent, StartTask]]:
        """See `Display.training`."""
        return nullcontext((self._on_event, no_tasks))

    def _on_event(self, event: Mapping[str, Any], _groups: object) -> None:
        for callback in self.callbacks:
            callback(event)


class ProgressBar(Silent):
    """A progress bar over the steps (tqdm: drawn as a widget in notebooks, as text elsewhere)."""

    @contextmanager
    def training(
        self, components: Components, folder: RunFolder, _interrupted: Callable[[], bool], /
    ) -> Iterator[tuple[OnEvent, StartTask]]:
        """See `Display.training`."""
        from tqdm.auto import tqdm

        figures: dict[str, str] = {}
        with tqdm(total=components.cfg.train.steps, unit="step", desc=folder.path.name) as bar:

            def start_task(name: str) -> ProgressCallback:
                bar.set_postfix({**figures, "now": name} if name else figures)
                return no_progress

            def on_event(event: Mapping[str, Any], groups: object) -> None:
                bar.update(int(event["step"]) - bar.n)
                if event["type"] == "step" and event.get("success/rate") is not None:
                    figures["success"] = f"{event['success/rate']:.0%}"
                elif event["type"] == "eval":
                    figures["held-out"] = f"{event['score']:.0%}"
                elif event["type"] in ("warning", "decline"):
                    bar.write(f"{event['type']}: {event.get('message', '')}")
                bar.set_postfix(figures)
                self._on_event(event, groups)

            yield on_event, start_task


def _raise(_code: int) -> None:
    """Stop at once on a second Ctrl-C, without ending the interpreter."""
    raise KeyboardInterrupt


def _task(task: object) -> tuple[str, object]:
    """Return the name for the configuration, and the task if it is a Python object."""
    if isinstance(task, str | Path):
        return str(task), None
    name = "functions" if isinstance(task, tuple) else getattr(task, "name", "") or type(task).__name__
    return f"{IN_MEMORY}{name}", task
