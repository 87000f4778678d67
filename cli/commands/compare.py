"""`sdpo compare A B`: the difference paired by problem, with its interval, and whether it can be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import completion, options
from sdpo_cli.commands.eval import EvalTarget, Greedy, NoCache, answering, asked, count, score
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.evaluation.compare import Comparison, Pair
    from sdpo_mlx.evaluation.document import EvalDocument

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
        typer.Argument(
            metavar="B", help="The same; without it, A is compared with its base.", autocompletion=completion.targets
        ),
    ] = None,
    *,
    adapter_a: Annotated[Path | None, typer.Option("--adapter-a", metavar="DIR", help="An adapter for A.")] = None,
    adapter_b: Annotated[Path | None, typer.Option("--adapter-b", metavar="DIR", help="An adapter for B.")] = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problems: options.Problems = None,
    samples: options.Samples = None,
    greedy: Greedy = False,
    no_cache: NoCache = False,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Compare two targets on the same problems with the same seeds; B minus A.

    With A alone, a run is compared with its untouched base.

    Example: sdpo compare runs/tiny-tiny-seed0
    """
    from sdpo_mlx.evaluation.compare import compare

    flags = asked(task, data, problems, samples, greedy) | {"train.seed": seed, "sandbox.kind": sandbox}
    named = [(first, adapter_a), (second, adapter_b)]
    sides = _sides(named, sets or [], flags, lambda *who, bare=False: EvalTarget(*who, no_cache, plain, bare))
    with answering(not no_cache) as interrupted:
        documents = [score(side, interrupted) if isinstance(side, EvalTarget) else side for side in sides]
    found = compare(*documents)
    names = [each.target or name for each, name in zip(documents, (first, second), strict=True)]
    if as_json:
        render.document(as_document(names, found))
    else:
        render.result(as_lines(names, found))


def _sides(
    named: Named,
    sets: list[str],
    flags: Mapping[str, Any],
    sitter: Callable[..., EvalTarget],
) -> list[EvalTarget | EvalDocument]:
    """Both sides. Whoever has settings of its own (a saved evaluation, else a run) says what the other is asked."""
    from sdpo_mlx.evaluation.document import read_evaluation
    from sdpo_mlx.runs.targets import target_config

    (first, adapter), (second, _) = named
    assert first is not None
    if second is None:
        cfg = target_config(_run(first, named), None, sets, flags)
        return [sitter(first, None, cfg, bare=True), sitter(first, None, cfg)]
    saved = {name: read_evaluation(Path(name)) for name, _ in named if name and Path(name).is_file()}
    given = {**_leading(named, saved, sets, flags), **{key: value for key, value in flags.items() if value is not None}}
    return [
        saved[name] if name in saved else sitter(name, own, target_config(name, own, sets, given))
        for name, own in ((first, adapter), named[1])
        if name is not None
    ]


def _run(first: str, named: Named) -> str:
    """A name that stands alone; raises ConfigError where it is no run."""
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.runs.targets import is_run

    if not is_run(Path(first)):
        raise ConfigError(
            "there is nothing to compare it with", where=first, fix="name a second target, or a run alone"
        )
    if any(adapter is not None for _, adapter in named):
        raise ConfigError("a run has an adapter of its own", where=first, fix="leave --adapter-a and --adapter-b out")
    return first


def _leading(
    named: Named,
    saved: Mapping[str, EvalDocument],
    sets: list[str],
    flags: Mapping[str, Any],
) -> dict[str, Any]:
    """What both are asked; raises ConfigError for two runs on different tasks where no flag names one."""
    from sdpo_mlx.core.errors import ConfigError
    from sdpo_mlx.evaluation.spec import settings_record
    from sdpo_mlx.runs.targets import is_run, target_config

    if saved:
        known = next(iter(saved.values())).settings
        named_now = {each.partition("=")[0].strip() for each in sets}
        return {key: value for key, value in known.items() if key not in named_now}
    runs = [name for name, _ in named if name and is_run(Path(name))]
    own = [settings_record(target_config(name, None, sets, flags)) for name in runs]
    tasks = [[str(each[key]) for key in ("task.name", "task.data") if each[key]] for each in own]
    if len(tasks) == 2 and tasks[0] != tasks[1]:
        both = " and ".join(" with ".join(each) for each in tasks)
        raise ConfigError("the two runs have different tasks", where=both, fix="say with --task what both are asked")
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
        "won": [_row(pair) for pair in found.won],
        "lost": [_row(pair) for pair in found.lost],
        "even": len(found.pairs) - len(found.won) - len(found.lost),
        "left_out": dict(zip(("only_first", "only_second", "changed"), found.left_out, strict=True)),
        "notes": list(found.notes),
    }


def _row(pair: Pair) -> dict[str, Any]:
    return {**asdict(pair), "change": pair.change}


def as_lines(names: list[str], found: Comparison) -> list[str]:
    """The same for a person."""
    low, high = found.interval
    ends = "" if math.isnan(low) else f" ({100 * low:+.1f} to {100 * high:+.1f}, 95 % interval)"
    even = len(found.pairs) - len(found.won) - len(found.lost)
    sides = [
        f"{letter}  {render.percent(each.score)}{render.span(each.low, each.high)}  {name}"
        for letter, name, each in zip("AB", names, found.scores, strict=True)
    ]
    return [
        *_problem_lines("won", found.won),
        *_problem_lines("lost", found.lost),
        *sides,
        f"B - A  {100 * found.difference:+.1f} points{ends}, paired over {count(len(found.pairs), 'problem')}",
        f"B won {len(found.won)}, lost {len(found.lost)}, even {even}",
        *_left_out(found.left_out),
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


def _left_out(counts: tuple[int, int, int]) -> list[str]:
    words = ("only A has", "only B has", "have another content under the same id")
    told = ", ".join(f"{count} {word}" for count, word in zip(counts, words, strict=True) if count)
    return [f"problems left out: {told}"] if told else []
