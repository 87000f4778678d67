"""The model card (README.md) of an adapter: its base, how it was made, its scores, how to use it.

A card gets published: it contains no path of this machine, and every name in it is quoted or fenced as data.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from sdpo_mlx.config import Config
from sdpo_mlx.evaluation.forgetting import Forgetting
from sdpo_mlx.models import license
from sdpo_mlx.models.gguf.writer import can_be_gguf
from sdpo_mlx.models.resolve import ORIGINALS, ResolvedModel
from sdpo_mlx.rl.components import versions

MADE_WITH = ("sdpo-mlx", "mlx", "mlx-lm", "torch")
SDPO = "self-distillation policy optimization (SDPO, arXiv 2601.20802)"


@dataclass(frozen=True)
class Result:
    """One held-out score with its interval; shares of 1. `score` is the mean reward, `success` the success rate."""

    score: float
    low: float
    high: float
    problems: int
    samples: int
    success: float = float("nan")


@dataclass(frozen=True)
class Base:
    """The base model of an adapter, as other people can find it.

    `name` is a hub repository, a name that sdpo-mlx resolves on every machine that has the model, or the name of a
    private folder. `terms` are the lines of its license for a card's front matter. `gguf`: it can be exported so.
    """

    name: str
    kind: Literal["hub", "named", "folder"] = "hub"
    revision: str = ""
    weights_sha256: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)
    gguf: bool = True
    original: str = ""  # the hub repository of a named base

    @classmethod
    def of(cls, model: ResolvedModel) -> Base:
        """Return the base of a resolved model."""
        rest = model.weights_sha256, license.terms(model.path), can_be_gguf(model.path)
        if model.source == "hub":
            return cls(model.target.partition("@")[0], "hub", model.revision, *rest)
        if model.source in ("folder", "gguf"):
            return cls(Path(model.target).resolve().name, "folder", "", *rest)
        return cls(model.name, "named", "", *rest, ORIGINALS.get(model.name, ""))

    def description(self) -> str:
        """Return the base as part of a sentence."""
        revision = f" at `{inline(self.revision)}`" if self.revision else ""
        weights = f" (weights SHA-256 `{self.weights_sha256[:16]}`)" if self.kind != "hub" else ""
        source = {"hub": "", "named": ", a model name in sdpo-mlx", "folder": ", a private folder"}
        return f"`{inline(self.name)}`{revision}{source[self.kind]}{weights}"

    def setup_lines(self) -> list[str]:
        """Return shell lines that set `BASE`, none if commands can name a repository."""
        if self.kind == "hub":
            return []
        if self.kind == "folder":
            return ["# the folder with the base model", f'BASE="{inline(self.name)}"']
        find = f"from sdpo_mlx.models.resolve import resolve; print(resolve('{inline(self.name)}').path)"
        return ["# the folder in which sdpo-mlx stores the base model", f'BASE="$(python -c "{find}")"']

    @property
    def argument(self) -> str:
        """The base as an argument of a shell command."""
        return f'"{inline(self.name)}"' if self.kind == "hub" else '"$BASE"'


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the settings.

    `description` says in Markdown how the adapter was made, `unscored` why there is no result if there is none,
    `again` how to reproduce it, `probe` what was measured before training, `warnings`
    what the health rules found in training.
    """

    name: str
    base: Base
    description: str
    before: Result | None = None
    after: Result | None = None
    unscored: str = "Not evaluated."
    versions: Mapping[str, str] = field(default_factory=versions)
    forgetting: Forgetting | None = None
    probe: str = ""
    again: Sequence[str] = ()
    warnings: Sequence[str] = ()
    unchanged: bool = False  # the adapter leaves its base as it is


def model_card(facts: CardFacts, config: Config) -> str:
    """Return Markdown with the front matter that model hubs read."""
    lines = [
        *_front_matter(facts, config),
        *(f"# {inline(facts.name)}", ""),
        *(f"An adapter for {facts.base.description()}, {facts.description}", ""),
        *(["**This adapter changes nothing:** its weights are those before the first step.", ""] * facts.unchanged),
        *_results(facts),
        *_warnings(facts),
        *_use(facts),
        *facts.again,
        *_settings(facts, config),
    ]
    return "\n".join([*lines, ""])


def trained(config: Config, steps: int, generations: int, sandbox: str = "none") -> str:
    """Describe a training run; `sandbox` says how programs that the model wrote were run."""
    data = f" with the problems of `{named(config.task.data)}`" if config.task.data else ""
    text = f"trained by {SDPO} on the task `{named(config.task.name)}`{data}: {steps} steps, {generations} rollouts."
    if sandbox == "none":
        return text
    if sandbox == "unconfined":
        return (
            f"{text} **Programs that it wrote in training ran unconfined** and could have read or changed their own "
            "grading."
        )
    return f"{text} Programs that it wrote in training ran in a sandbox ({inline(sandbox)})."


def coached(origin: str, lessons: int, remarks: int, good: int) -> str:
    """Describe a coached folder; `origin` is the run that it started from, empty for the base model."""
    start = f"It started from the adapter of `{inline(origin)}`." if origin else "It started from the base model."
    return (
        f"trained from human feedback by {SDPO}: {lessons} lessons with {remarks} comments and {good} rollouts marked "
        f"as good. {start}"
    )


def lessons_again(base: Base, origin: str, file: str) -> list[str]:
    """Return the section on how to repeat the steps of a coached folder."""
    first, target = ([], inline(origin)) if origin else (base.setup_lines(), base.argument)
    text = (
        f"`{file}` in the whole folder holds every rollout with its human feedback. From the same start"
        f"{f', the run `{target}`,' if origin else ''} this repeats the same steps:"
    )
    command = f"sdpo coach {target} --replay {file} --out again"
    return ["## Human feedback", "", text, "", "```sh", *first, command, "```", ""]


def searched(config: Config, problem: str, attempts: int, solved: int | None) -> str:
    """Describe a search for an answer to one problem; `solved` is the number of the attempt that succeeded."""
    end = f"attempt {solved} of {attempts} solved it" if solved else f"none of {attempts} attempts solved it"
    return (
        f"made by test-time training on one problem, `{inline(problem)}` of the task `{named(config.task.name)}`, "
        f"by {SDPO}: {end}."
    )


def named(place: str) -> str:
    """Return a task or data set without its folders on this machine."""
    public = place.startswith("hub:") or not ("/" in place or "\\" in place)
    return inline(place if public else PurePath(place.replace("\\", "/")).name)


def _front_matter(facts: CardFacts, config: Config) -> list[str]:
    # A JSON string is a YAML string too, whatever the name contains.
    base, terms = facts.base, facts.base.terms
    repository = base.name if base.kind == "hub" else base.original
    known = [f"base_model: {json.dumps(repository)}", "base_model_relation: adapter"] if repository else []
    # Hubs accept one identifier as license, and a link only if it works from another page.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", terms.get("license", "")):
        terms = {}
    return [
        "---",
        *known,
        *(
            f"{name}: {json.dumps(value)}"
            for name, value in terms.items()
            if name != "license_link" or value.startswith("https://")
        ),
        "library_name: mlx",
        "pipeline_tag: text-generation",
        f"tags: [mlx, {config.model.adapter.kind}, sdpo, reinforcement-learning]",
        "---",
    ]


def _results(facts: CardFacts) -> list[str]:
    rows = [
        f"| {label} | {100 * result.score:.1f} % | {100 * result.low:.1f} to {100 * result.high:.1f} % "
        f"| {result.problems} x {result.samples} |"
        for label, result in (("base model", facts.before), ("this adapter", facts.after))
        if result is not None
    ]
    table = (
        [
            f"| | {label_of(facts.before, facts.after)} | 95 % interval | problems x samples |",
            "|---|---|---|---|",
            *rows,
        ]
        if rows
        else [facts.unscored]
    )
    before = [f"Before training, on problems of the first step: {facts.probe}.", ""] if facts.probe else []
    lines, found = ["## Result on held-out problems", "", *table, "", *before], facts.forgetting
    if found is None or found.before is None:
        return lines
    return [
        *lines,
        f"On general prompts this adapter diverges from its base by {found.divergence:.4f} nats per token "
        f"(standard error {found.error:.4f}); on a general English text the perplexity went from "
        f"{found.before.perplexity:.2f} to {found.after.perplexity:.2f}.",
        "",
    ]


def label_of(*results: Result | None) -> str:
    """Return what these scores are: success rates, or mean rewards if some rewards lie between 0 and 1."""
    known = [each for each in results if each is not None and not math.isnan(each.success)]
    binary = all(math.isclose(each.score, each.success, abs_tol=1e-9) for each in known)
    return ("success" if binary else "mean reward") if known else "score"


def _warnings(facts: CardFacts) -> list[str]:
    lines = [f"- {each}" for each in facts.warnings]
    return ["## Warnings in training", "", *lines, ""] if lines else []


def _use(facts: CardFacts) -> list[str]:
    base = facts.base.argument
    commands = {
        "sdpo-mlx": f"sdpo chat {base} --adapter . --compare   # or: sdpo serve {base} --adapter .",
        "mlx-lm": f'mlx_lm.generate --model {base} --adapter-path . --prompt "..."',
        "LM Studio (MLX)": f"mlx_lm.fuse --model {base} --adapter-path . --save-path ~/.lmstudio/models/sdpo/fused",
        "Ollama": "sdpo export . --to gguf --out gguf && ollama create sdpo -f gguf/Modelfile && ollama run sdpo",
        "vllm": "sdpo export . --to peft --out peft   # prints the command for vllm",
    }
    if not facts.base.gguf:
        del commands["Ollama"]
    shown = [line for tool, command in commands.items() for line in (f"# {tool}", command)]
    note = "The commands with `sdpo export` need the whole run folder, the others only this adapter."
    first = facts.base.setup_lines()
    return ["## Use", "", "From inside this folder:", "", "```sh", *first, *shown, "```", "", note, ""]


def _settings(facts: CardFacts, config: Config) -> list[str]:
    train, objective = config.train, config.objective
    made = ", ".join(f"{name} {facts.versions[name]}" for name in MADE_WITH if name in facts.versions)
    rows = {
        "objective": f"{objective.kind}, alpha {objective.alpha}, support {objective.support}",
        "teacher": f"{config.teacher.kind}, rate {config.teacher.update_rate}",
        "adapter": f"{config.model.adapter.kind}, rank {config.model.adapter.rank}",
        "learning rate": f"{train.learning_rate:g}, {train.schedule}",
        "rollouts per step": f"{config.rollout.problems_per_step} problems x {config.rollout.group_size}",
        "seed": f"{train.seed}",
        **({"made with": inline(made)} if made else {}),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["## Settings", "", "The complete list is in `config.yaml`.", "", "| | |", "|---|---|", *lines]


def inline(text: str) -> str:
    """Return one line without the characters that end a code span or a quoted argument."""
    return "".join(each for each in text if each.isprintable() and each not in "`\"$\\'")
