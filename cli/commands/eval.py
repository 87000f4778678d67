"""`sdpo eval TARGET`: avg@n and pass@k on held-out problems, with intervals, by family and problem by problem."""

from __future__ import annotations

import json
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
    from sdpo_mlx.evaluation.evaluate import EvalSpec, Evaluation
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
    from sdpo_mlx.runs.targets import target_config

    flags = asked(task, data, problems, samples, greedy) | {"train.seed": seed, "sandbox.kind": sandbox}
    cfg = target_config(target, adapter, sets or [], flags)
    if out is not None:
        check_place(out)
    with answering(not no_cache) as interrupted:
        scored = score(EvalTarget(target, adapter, cfg, no_cache, plain), interrupted)
    if out is not None:
        save(out, scored)
    if as_json:
        render.document(scored.content)
    else:
        render.result(as_lines(scored.content))


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
        from sdpo_mlx.evaluation.spec import adapter_folder

        return None if self.bare else adapter_folder(self.target, self.adapter)


@dataclass(frozen=True)
class Scored:
    """An evaluation with its answers, and the document about it."""

    found: Evaluation
    content: dict[str, Any]


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


def score(sitter: EvalTarget, interrupted: Callable[[], bool]) -> Scored:
    """Open the target and score it: what was answered before comes from where it was kept."""
    from sdpo_mlx.evaluation.evaluate import evaluate
    from sdpo_mlx.evaluation.spec import answers_depend_on, eval_spec, rollout_cache

    begun = time.monotonic()
    with render.status(f"opening {sitter.cfg.model.name}", sitter.plain) as doing:
        setup = _opened(sitter, doing)
    render.say(setup.model.line())
    render.warn(setup.warnings())
    exam = eval_spec(setup)
    depends_on = answers_depend_on(setup, exam, sitter.home)
    store = None if sitter.no_cache else rollout_cache(depends_on, sitter.home)
    begun_with: list[int] = []
    with render.status(f"sampling {exam.samples} answers a problem", sitter.plain) as doing:
        told = doing("answers")

        def tell(done: int, total: int) -> None:
            begun_with.append(done)
            told(done, total)

        found = evaluate(setup.policy, setup.task, setup.chat, exam, interrupted, store, tell)
    content = as_document(sitter, setup, exam, found, time.monotonic() - begun)
    if store is None:
        return Scored(found, {**content, "kept": None})
    there = begun_with[0]
    if there:
        render.say(f"{there} answers were there already ({store.path}).")
    return Scored(found, {**content, "kept": {"path": str(store.path), "answers": there}})


def _opened(sitter: EvalTarget, doing: StartTask) -> Components:
    from sdpo_mlx.rl.components import build_components
    from sdpo_mlx.runs.targets import open_target

    if sitter.bare:
        return build_components(sitter.cfg, start_task=doing)
    return open_target(sitter.target, sitter.cfg, sitter.adapter, doing)


def as_document(
    sitter: EvalTarget, setup: Components, exam: EvalSpec, found: Evaluation, seconds: float
) -> dict[str, Any]:
    """Everything that was measured; scores are shares of 1. `sdpo compare` reads it."""
    from sdpo_mlx.evaluation.spec import settings_record
    from sdpo_mlx.runs.folder import adapter_sha256

    home = sitter.home
    sampling = exam.sampling
    return {
        "target": sitter.name,
        "model": setup.model.record(),
        "adapter": adapter_sha256(home) if home is not None else None,
        "task": setup.cfg.task.name,
        **_figures(found),
        "samples": found.samples,
        "seed": found.seed,
        "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")},
        "settings": settings_record(setup.cfg),
        "seconds": round(seconds, 3),
        "families": [{"family": name, **_figures(part)} for name, part in found.families().items()],
        "problems": [
            {
                "id": p.id,
                "family": p.family,
                "sha256": p.sha256,
                "rewards": list(p.rewards),
                "successes": list(p.successes),
            }
            for p in found.problems
        ],
    }


def _figures(found: Evaluation) -> dict[str, Any]:
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < found.samples] + [found.samples]
    return {**found.event(), **{f"pass@{k}": found.pass_at(k) for k in ks}}


def check_place(out: Path) -> None:
    """Refuse a file that could not be saved before anything is sampled for it; raises StorageError."""
    from sdpo_mlx.core.errors import StorageError

    if not out.name or not out.parent.is_dir() or (out.exists() and not out.is_file()):
        raise StorageError("cannot write here", where=str(out), fix="name a file in a folder that exists")


def save(out: Path, scored: Scored) -> None:
    """The document, and beside it every answer as a line of JSON. Raises StorageError."""
    from sdpo_mlx.core.storage import json_line, plain, write_bytes, write_text

    answers = out.with_suffix(".answers.jsonl")
    lines = (answer.record(problem.id) for problem in scored.found.problems for answer in problem.answers)
    write_bytes(answers, b"".join(map(json_line, lines)))
    document = plain({**scored.content, "answers": str(answers)})
    write_text(out, json.dumps(document, indent=2, allow_nan=False) + "\n")


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
