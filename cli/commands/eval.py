"""`sdpo eval TARGET`: avg@n and pass@k on held-out problems with intervals, by family and by problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sdpo_cli import options
from sdpo_cli.commands.opening import interruptible, open_components
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_mlx.config import Config
    from sdpo_mlx.evaluation.evaluate import EvalDocument

GREEDY = {"eval.temperature": 0.0, "eval.samples": 1}
NoCache = Annotated[bool, typer.Option("--no-cache", help="Neither reuse cached rollouts nor cache new ones.")]
Greedy = Annotated[bool, typer.Option("--greedy", help="Greedy decoding; one rollout per problem.")]


def command(  # noqa: PLR0913 - typer reads the options off the signature
    target: options.Target,
    *,
    adapter: options.Adapter = None,
    task: options.TaskName = None,
    data: options.Data = None,
    problems: options.Problems = None,
    group_size: options.GroupSize = None,
    greedy: Greedy = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Save the evaluation, and its rollouts in FILE.answers.jsonl."),
    ] = None,
    no_cache: NoCache = False,
    backend: options.Backend = None,
    seed: options.Seed = None,
    sets: options.Sets = None,
    sandbox: options.SandboxKind = None,
    plain: options.Plain = False,
    as_json: options.AsJson = False,
) -> None:
    """Score a run, a model, or a model with an adapter on held-out problems.

    Example: sdpo eval runs/tiny-tiny-seed0 --group-size 8
    """
    from sdpo_mlx.core.errors import StorageError
    from sdpo_mlx.evaluation.evaluate import save_evaluation
    from sdpo_mlx.runs.targets import target_config

    flags = options.settings(task=task, data=data, backend=backend, seed=seed, sandbox=sandbox)
    cfg = target_config(target, adapter, sets or [], flags | eval_settings(problems, group_size, greedy))
    # before anything is sampled
    if out is not None and (not out.name or not out.parent.is_dir() or (out.exists() and not out.is_file())):
        raise StorageError("cannot write here", where=str(out), fix="name a file in an existing folder")
    with eval_interruptible(no_cache) as interrupt:
        scored = score(EvalTarget(target, adapter, cfg, no_cache, plain), interrupt.requested)
    if out is not None:
        save_evaluation(out, scored)
    render.output(scored.to_document(), as_lines(scored.to_document()), as_json)


def eval_settings(problems: int | None, group_size: int | None, greedy: bool) -> dict[str, Any]:
    """Return the settings of `eval`; raises ConfigError for several greedy rollouts, which would be equal."""
    from sdpo_mlx.core.errors import ConfigError

    if greedy and group_size not in (None, 1):
        fix = "remove --group-size or --greedy"
        raise ConfigError("greedy rollouts of one problem are all equal", where="--group-size", fix=fix)
    return {"eval.problems": problems, "eval.samples": group_size} | (GREEDY if greedy else {})


def eval_interruptible(no_cache: bool) -> Any:
    """An interruptible block of which the rollouts stay in the cache."""
    resume = "" if no_cache else " Run the same command again to continue from the cached rollouts."
    return interruptible(lambda: f".{resume}")


@dataclass(frozen=True)
class EvalTarget:
    """A target with its settings; `bare` leaves out the adapter of a run."""

    target: str
    adapter: Path | None
    cfg: Config
    no_cache: bool
    plain: bool
    bare: bool = False


def score(side: EvalTarget, interrupted: Callable[[], bool]) -> EvalDocument:
    """Open the target and evaluate it; cached rollouts are not sampled again."""
    from sdpo_mlx.evaluation.evaluate import score as evaluated
    from sdpo_mlx.runs.targets import adapter_home

    if side.bare:
        name, home = f"the base of {side.target}", None
    else:
        name = f"{side.target} with {side.adapter}" if side.adapter is not None else side.target
        home = adapter_home(side.target, side.adapter)
    components = open_components(side.cfg, side.plain, None if side.bare else side.target, side.adapter)
    rollouts = render.plural(components.cfg.eval.samples, "rollout")
    with render.status(f"sampling {rollouts} per problem", side.plain) as start_task:
        found = evaluated(
            components,
            name,
            home,
            use_cache=not side.no_cache,
            interrupted=interrupted,
            on_progress=start_task("rollouts"),
        )
    if found.cached and found.cached["answers"]:
        render.message(f"{render.plural(found.cached['answers'], 'rollout')} from the cache ({found.cached['path']})")
    return found


def as_lines(content: dict[str, Any]) -> list[str]:
    """Return the lines of the text output."""
    ks = sorted(int(name.removeprefix("pass@")) for name in content if name.startswith("pass@"))
    rows = [
        (p["id"], f"{sum(p['successes'])}/{len(p['successes'])}", f"{sum(rewards) / len(rewards):.2f}", p["family"])
        for p in content["problems"]
        for rewards in [p["rewards"] or [math.nan]]
    ]
    lines = [*render.table(("problem", "solved", "reward", "family"), rows), ""]
    if len(families := content["families"]) > 1:
        by_family = [(str(f["n"]), _score(f), render.percent(f["pass@1"]), f["family"] or "-") for f in families]
        lines += [*render.table(("problems", f"avg@{content['samples']}", "pass@1", "family"), by_family), ""]
    # What is needed to reproduce the rollouts: the weights and the sampling settings.
    adapter, how = content["adapter"], content["sampling"]
    weights = f"weights {str(content['model'].get('weights_sha256', '?'))[:12]}"
    decoding = "greedy" if how["temperature"] == 0 else f"temperature {how['temperature']:g}, top-p {how['top_p']:g}"
    rollouts = render.plural(content["samples"], "rollout")
    return [
        *lines,
        f"{content['target']} on {content['task']}: {render.plural(content['n'], 'problem')}, {rollouts} per problem",
        f"{weights}, {f'adapter {adapter[:12]}' if adapter else 'no adapter'}; seed {content['seed']}; "
        f"{decoding}, at most {how['max_tokens']} tokens",
        f"avg@{content['samples']}  {_score(content)}, 95 % interval",
        *(f"pass@{k}  {render.percent(content[f'pass@{k}'])}" for k in ks),
    ]


def _score(figures: dict[str, Any]) -> str:
    return render.percent(figures["score"], figures["low"], figures["high"])
