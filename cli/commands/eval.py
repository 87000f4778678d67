"""`sdpo eval TARGET`: avg@n and pass@k on held-out problems, with intervals, by family and problem by problem."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.core.progress import StartTask
    from sdpo_mlx.evaluation.document import EvalDocument
    from sdpo_mlx.rl.components import Components

GREEDY = {"eval.temperature": 0.0, "eval.samples": 1}
NoCache = Annotated[bool, typer.Option("--no-cache", help="Sample anew; neither use kept answers nor keep them.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="The likeliest token each time; one answer for each problem.")]


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.Target,
    *,
    adapter: Annotated[Path | None, typer.Option("--adapter", metavar="DIR", help="An adapter for the model.")] = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problems: options.Problems = None,
    samples: options.Samples = None,
    greedy: Greedy = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Save the evaluation, and its answers beside it (.answers.jsonl)."),
    ] = None,
    no_cache: NoCache = False,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Score a run, a model, or a model with an adapter on held-out problems.

    Example: sdpo eval runs/tiny-tiny-seed0 --samples 8
    """
    from sdpo_mlx.evaluation.document import save_evaluation
    from sdpo_mlx.runs.targets import target_config

    flags = asked(task, data, problems, samples, greedy) | {"train.seed": seed, "sandbox.kind": sandbox}
    cfg = target_config(target, adapter, sets or [], flags)
    if out is not None:
        check_place(out)
    with answering(not no_cache) as interrupted:
        scored = score(EvalTarget(target, adapter, cfg, no_cache, plain), interrupted)
    if out is not None:
        save_evaluation(out, scored)
    if as_json:
        render.document(scored.to_document())
    else:
        render.result(as_lines(scored.to_document()))


def asked(
    task: str | None, data: str | None, problems: int | None, samples: int | None, greedy: bool
) -> dict[str, Any]:
    """What is asked, as dotted settings. Raises ConfigError for several greedy answers: they would be one."""
    from sdpo_mlx.core.errors import ConfigError

    if greedy and samples not in (None, 1):
        raise ConfigError("greedy answers are all alike", where="--samples", fix="leave --samples or --greedy out")
    flags = {"task.name": task, "task.data": data, "eval.problems": problems, "eval.samples": samples}
    return flags | (GREEDY if greedy else {})


@dataclass(frozen=True)
class EvalTarget:
    """Who sits an exam: a target with its settings; `bare` leaves a run's adapter out."""

    target: str
    adapter: Path | None
    cfg: Config
    no_cache: bool
    plain: bool
    bare: bool = False

    @property
    def name(self) -> str:
        """For a person."""
        beside = f" with {self.adapter}" if self.adapter is not None else ""
        return f"the base of {self.target}" if self.bare else f"{self.target}{beside}"

    @property
    def home(self) -> Path | None:
        """The folder of the adapter, if there is one."""
        from sdpo_mlx.runs.targets import adapter_home

        return None if self.bare else adapter_home(self.target, self.adapter)


@contextmanager
def answering(kept: bool) -> Iterator[Callable[[], bool]]:
    """A signal ends it in good order; `kept` says that what was answered stays."""
    from sdpo_mlx.core.interrupt import Interrupt

    with Interrupt() as interrupt:
        try:
            yield interrupt.requested
        except KeyboardInterrupt:
            render.say("sdpo: interrupted" + ("; the same command goes on from what was answered." if kept else "."))
            raise typer.Exit(interrupt.exit_code or 130) from None


def score(sitter: EvalTarget, interrupted: Callable[[], bool]) -> EvalDocument:
    """Open the target and score it; rollouts of an earlier evaluation come from the cache."""
    from sdpo_mlx.evaluation.cache import rollout_cache
    from sdpo_mlx.evaluation.document import EvalDocument
    from sdpo_mlx.evaluation.evaluate import evaluate
    from sdpo_mlx.evaluation.spec import eval_spec, settings_record
    from sdpo_mlx.runs.folder import adapter_sha256

    begun = time.monotonic()
    with render.status(f"opening {sitter.cfg.model.name}", sitter.plain) as doing:
        setup = _opened(sitter, doing)
    render.say(setup.model.line())
    render.warn(setup.warnings())
    spec, home = eval_spec(setup), sitter.home
    cache = None if sitter.no_cache else rollout_cache(setup, spec, home)
    begun_with: list[int] = []
    with render.status(f"sampling {spec.samples} rollouts a problem", sitter.plain) as doing:
        shown = doing("rollouts")

        def on_progress(done: int, total: int) -> None:
            begun_with.append(done)
            shown(done, total)

        found = evaluate(setup.policy, setup.task, setup.chat, spec, interrupted, cache, on_progress)
    reused = begun_with[0]
    if reused and cache is not None:
        render.say(f"{reused} rollouts were in the cache ({cache.path}).")
    sampling = {name: getattr(spec.sampling, name) for name in ("temperature", "top_p", "max_tokens")}
    return EvalDocument(
        found,
        target=sitter.name,
        task=setup.cfg.task.name,
        conditions={"samples": found.samples, "seed": found.seed, "sampling": sampling},
        settings=settings_record(setup.cfg),
        model=setup.model.record(),
        adapter=adapter_sha256(home) if home is not None else None,
        seconds=time.monotonic() - begun,
        cached=None if cache is None else {"path": str(cache.path), "answers": reused},
    )


def _opened(sitter: EvalTarget, doing: StartTask) -> Components:
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.targets import open_target

    if sitter.bare:
        return build_components(sitter.cfg, start_task=doing)
    return open_target(sitter.target, sitter.cfg, sitter.adapter, doing)


def check_place(out: Path) -> None:
    """Refuse a file that could not be saved before anything is sampled for it; raises StorageError."""
    from sdpo_mlx.core.errors import StorageError

    if not out.name or not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise StorageError("cannot write here", where=str(out), fix="name a file in a folder that exists")


def as_lines(content: dict[str, Any]) -> list[str]:
    """The same for a person."""
    ks = sorted(int(name.removeprefix("pass@")) for name in content if name.startswith("pass@"))
    rows = [
        (p["id"], f"{sum(p['successes'])}/{len(p['successes'])}", f"{_mean(p['rewards']):.2f}", p["family"])
        for p in content["problems"]
    ]
    size = f"{count(content['n'], 'problem')}, {count(content['samples'], 'answer')} each"
    return [
        *render.table(("problem", "solved", "reward", "family"), rows),
        "",
        *_family_lines(content),
        f"{content['target']} on {content['task']}: {size}",
        _asked_line(content),
        f"avg@{content['samples']}  {_score(content)}, 95 % interval",
        *(f"pass@{k}  {render.percent(content[f'pass@{k}'])}" for k in ks),
    ]


def count(number: int, what: str) -> str:
    """`1 answer`, `4 answers`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _asked_line(content: dict[str, Any]) -> str:
    """Whose answers these are and how they were drawn: what it takes to get them again."""
    weights, adapter = str(content["model"].get("weights_sha256", "?"))[:12], content["adapter"]
    how = content["sampling"]
    drawn = "greedy" if how["temperature"] == 0 else f"temperature {how['temperature']:g}, top-p {how['top_p']:g}"
    whose = f"weights {weights}" + (f", adapter {adapter[:12]}" if adapter else ", no adapter")
    return f"{whose}; seed {content['seed']}; {drawn}, at most {how['max_tokens']} tokens"


def _family_lines(content: dict[str, Any]) -> list[str]:
    """A table, where there is more than one family."""
    families = content["families"]
    if len(families) < 2:
        return []
    rows = [(str(each["n"]), _score(each), render.percent(each["pass@1"]), each["family"] or "-") for each in families]
    return [*render.table(("problems", f"avg@{content['samples']}", "pass@1", "family"), rows), ""]


def _score(figures: dict[str, Any]) -> str:
    return f"{render.percent(figures['score'])}{render.span(figures['low'], figures['high'])}"


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
