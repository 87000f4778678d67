"""`sdpo compare A B`: the difference paired by problem, with its interval and whether it is significant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import completion, options
from sdpo_cli.commands.eval import EvalTarget, Greedy, NoCache, eval_interruptible, eval_settings, score
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.evaluation.compare import Comparison, Pair
    from sdpo_mlx.evaluation.evaluate import EvalDocument

Named = list[tuple[str | None, Path | None]]  # both arguments, each with its adapter
SHOWN = 10  # problems won, and lost, on a terminal; --json has all


def command(  # noqa: PLR0913 - typer reads the options off the signature
    first: Annotated[
        str,
        typer.Argument(
            metavar="A", help="A run folder, a model, or a saved evaluation.", autocompletion=completion.targets
        ),
    ],
    second: Annotated[
        str | None,
        typer.Argument(metavar="B", help="The same; default: A's base model.", autocompletion=completion.targets),
    ] = None,
    *,
    adapter_a: Annotated[Path | None, typer.Option("--adapter-a", metavar="DIR", help="Adapter for A.")] = None,
    adapter_b: Annotated[Path | None, typer.Option("--adapter-b", metavar="DIR", help="Adapter for B.")] = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problems: options.Problems = None,
    group_size: options.GroupSize = None,
    greedy: Greedy = False,
    no_cache: NoCache = False,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare two targets on the same problems with the same seeds; B minus A.

    With A alone, a run is compared with its base model.

    Example: sdpo compare runs/tiny-tiny-seed0
    """
    from sdpo_mlx.evaluation.compare import compare

    flags = options.settings(task=task, data=data, backend=backend, seed=seed, sandbox=sandbox)
    flags |= eval_settings(problems, group_size, greedy)
    named = [(first, adapter_a), (second, adapter_b)]
    sides = _sides(named, sets or [], flags, lambda *what, bare=False: EvalTarget(*what, no_cache, plain, bare))
    with eval_interruptible(no_cache) as interrupt:
        documents = [score(side, interrupt.requested) if isinstance(side, EvalTarget) else side for side in sides]
    found = compare(*documents)
    names = [each.target or name for each, name in zip(documents, (first, second), strict=True)]
    render.output(as_document(names, found), as_lines(names, found), as_json)


def _sides(
    named: Named, sets: list[str], flags: Mapping[str, Any], target: Callable[..., EvalTarget]
) -> list[EvalTarget | EvalDocument]:
    """Return both sides. The one with settings (a saved evaluation, otherwise a run) sets those of the other."""
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.evaluation.evaluate import read_evaluation
    from sdpo_mlx.runs.targets import is_run, target_config

    (first, adapter), (second, _) = named
    assert first is not None
    if second is None:
        if not is_run(Path(first)):
            fix = "name a second target, or one run folder"
            raise ConfigError("there is nothing to compare it with", where=first, fix=fix)
        if any(each is not None for _, each in named):
            raise ConfigError("a run has its own adapter", where=first, fix="remove --adapter-a and --adapter-b")
        cfg = target_config(first, None, sets, flags)
        return [target(first, None, cfg, bare=True), target(first, None, cfg)]
    saved = {name: read_evaluation(Path(name)) for name, _ in named if name and Path(name).is_file()}
    given = {**_shared(named, saved, sets, flags), **{key: value for key, value in flags.items() if value is not None}}
    return [
        saved[name] if name in saved else target(name, own, target_config(name, own, sets, given))
        for name, own in ((first, adapter), named[1])
        if name is not None
    ]


def _shared(
    named: Named, saved: Mapping[str, EvalDocument], sets: list[str], flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of both sides; raises ConfigError for runs on different tasks without --task."""
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.evaluation.spec import settings_record
    from sdpo_mlx.runs.targets import is_run, target_config

    if saved:
        recorded = next(iter(saved.values())).settings
        overridden = {each.partition("=")[0].strip() for each in sets}
        return {key: value for key, value in recorded.items() if key not in overridden}
    runs = [name for name, _ in named if name and is_run(Path(name))]
    own = [settings_record(target_config(name, None, sets, flags)) for name in runs]
    tasks = [[str(each[key]) for key in ("task.name", "task.data") if each[key]] for each in own]
    if len(tasks) == 2 and tasks[0] != tasks[1]:
        both = " and ".join(" with ".join(each) for each in tasks)
        raise ConfigError("the two runs have different tasks", where=both, fix="choose one with --task")
    return own[0] if own else {}


def as_document(names: list[str], found: Comparison) -> dict[str, Any]:
    """Everything; scores are shares of 1, `needed` counts problems."""
    sides = [{"name": name, **asdict(each)} for name, each in zip(names, found.scores, strict=True)]
    low, high = found.interval
    return {
        "first": sides[0],
        "second": sides[1],
        "problems": len(found.pairs),
        "difference": {"mean": found.difference, "low": low, "high": high},
        "believed": found.significant,
        "needed": found.needed,
        "sentence": found.sentence(),
        "won": [{**asdict(pair), "change": pair.change} for pair in found.won],
        "lost": [{**asdict(pair), "change": pair.change} for pair in found.lost],
        "even": len(found.pairs) - len(found.won) - len(found.lost),
        "left_out": dict(zip(("only_first", "only_second", "changed"), found.left_out, strict=True)),
        "notes": list(found.notes),
    }


def as_lines(names: list[str], found: Comparison) -> list[str]:
    """Return the lines of the text output."""
    low, high = found.interval
    ends = "" if math.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f}, 95 % interval)"
    even = len(found.pairs) - len(found.won) - len(found.lost)
    reasons = ("only in A", "only in B", "with the same id and different content")
    left_out = ", ".join(f"{n} {reason}" for n, reason in zip(found.left_out, reasons, strict=True) if n)
    sides = [
        f"{letter}  {render.percent(each.score, each.low, each.high)}  {name}"
        for letter, name, each in zip("AB", names, found.scores, strict=True)
    ]
    return [
        *_problem_lines("won", found.won),
        *_problem_lines("lost", found.lost),
        *sides,
        f"B - A  {100 * found.difference:+.1f} points{ends}, paired over {render.plural(len(found.pairs), 'problem')}",
        f"B won {len(found.won)}, lost {len(found.lost)}, even {even}",
        *([f"problems left out: {left_out}"] if left_out else []),
        *(f"note: {each}" for each in found.notes),
        "",
        found.sentence(),
    ]


def _problem_lines(how: str, pairs: tuple[Pair, ...]) -> list[str]:
    if not pairs:
        return []
    rows = [(p.id, f"{p.first:.2f}", f"{p.second:.2f}", f"{p.change:+.2f}", p.family) for p in pairs[:SHOWN]]
    more = [f"and {len(pairs) - SHOWN} more (--json has all)"] if len(pairs) > SHOWN else []
    return [*render.table((f"B {how}", "A", "B", "change", "family"), rows), *more, ""]
