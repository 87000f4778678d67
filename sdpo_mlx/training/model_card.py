"""The model card that lies in a folder with an adapter: what it is made from, how well it does, how to use it.

A card is for strangers: it names no path of this machine, and every name in it is quoted or fenced as data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from sdpo_mlx.config import Config
from sdpo_mlx.evaluation.forgetting import Forgetting
from sdpo_mlx.models import license
from sdpo_mlx.models.resolve import ResolvedModel

MADE_WITH = ("sdpo-mlx", "mlx", "mlx-lm", "torch")
SDPO = "self-distillation policy optimisation (SDPO, arXiv 2601.20802)"


@dataclass(frozen=True)
class Result:
    """One held-out score with its interval; shares of 1."""

    score: float
    low: float
    high: float
    problems: int
    samples: int


@dataclass(frozen=True)
class Base:
    """The model below an adapter, as somebody elsewhere can find it.

    `name` is a repository on the hub, a name that sdpo knows on every machine that has the model, or the name of a
    folder that only its owner has. `terms` are the licence's lines for a card's front matter.
    """

    name: str
    kind: Literal["hub", "named", "folder"] = "hub"
    revision: str = ""
    weights_sha256: str = ""
    terms: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ResolvedModel) -> Base:
        """Read it off a model that was found."""
        if model.source == "hub":
            name = model.target.partition("@")[0]
            return cls(name, "hub", model.revision, model.weights_sha256, license.terms(model.path))
        private = model.source in ("folder", "gguf")
        name = Path(model.target).resolve().name if private else model.name
        terms = license.terms(model.path)
        return cls(name, "folder" if private else "named", "", model.weights_sha256, terms)

    def described(self) -> str:
        """The base in half a sentence."""
        revision = f" at `{inline(self.revision)}`" if self.revision else ""
        weights = f" (weights SHA-256 `{self.weights_sha256[:16]}`)" if self.kind != "hub" else ""
        kept = {"hub": "", "named": ", a model that sdpo-mlx knows by this name", "folder": ", a folder of its maker's"}
        return f"`{inline(self.name)}`{revision}{kept[self.kind]}{weights}"

    def before_use(self) -> list[str]:
        """What the lines of use need first; nothing where they can name a repository."""
        if self.kind == "hub":
            return []
        if self.kind == "folder":
            return ["# the folder with the base model", f'BASE="{inline(self.name)}"']
        find = f"from sdpo_mlx.models.resolve import resolve; print(resolve('{inline(self.name)}').path)"
        return ["# the folder of the base model, where sdpo-mlx keeps it", f'BASE="$(python -c "{find}")"']

    @property
    def word(self) -> str:
        """How the lines of use name it."""
        return f'"{inline(self.name)}"' if self.kind == "hub" else '"$BASE"'


@dataclass(frozen=True)
class CardFacts:
    """What the card tells besides the settings.

    `story` says in Markdown how the adapter came about, `unscored` why there is no result where there is none,
    `again` how to make it once more.
    """

    name: str
    base: Base
    story: str
    before: Result | None = None
    after: Result | None = None
    unscored: str = "Not evaluated."
    versions: Mapping[str, str] = field(default_factory=dict)
    forgetting: Forgetting | None = None
    again: Sequence[str] = ()


def model_card(facts: CardFacts, config: Config) -> str:
    """Markdown with the front matter that model hubs read."""
    parts = (_front(facts, config), _what(facts), _results(facts), _use(facts), list(facts.again))
    return "\n".join([*(line for part in parts for line in part), *_settings(facts, config), ""])


def trained(config: Config, steps: int, generations: int, sandbox: str = "none") -> str:
    """The story of a training run."""
    data = f" with the problems of `{named(config.task.data)}`" if config.task.data else ""
    return (
        f"trained by {SDPO} on the task `{named(config.task.name)}`{data}: {steps} steps, {generations} sampled "
        f"answers.{_containment(sandbox)}"
    )


def coached(origin: str, lessons: int, remarks: int, good: int) -> str:
    """The story of a coached folder; `origin` is the run that it began with, blank for the base as it is."""
    begun = f"It began with the adapter of `{inline(origin)}`." if origin else "It began with the base as it is."
    return (
        f"coached by a person, {SDPO} with the person's words in place of a grader's: {lessons} lessons with "
        f"{remarks} remarks and {good} answers marked as good. {begun}"
    )


def lessons_again(base: Base, origin: str, file: str) -> list[str]:
    """A section on what a coached folder keeps, and how to make the same steps once more."""
    first, target = ([], inline(origin)) if origin else (base.before_use(), base.word)
    told = (
        f"`{file}` in the whole folder holds every answer with what was said about it. From the same start"
        f"{f', the run `{target}`,' if origin else ''} it makes the same steps again:"
    )
    command = f"sdpo coach {target} --replay {file} --out again"
    return ["## The lessons", "", told, "", "```sh", *first, command, "```", ""]


def searched(config: Config, problem: str, attempts: int, solved: int | None) -> str:
    """The story of a search for one answer; `solved` is the number of the attempt that succeeded."""
    end = f"attempt {solved} of {attempts} solved it" if solved else f"none of {attempts} attempts solved it"
    return (
        f"left by a search for an answer to one problem, `{inline(problem)}` of the task `{named(config.task.name)}`, "
        f"by {SDPO} at test time: {end}."
    )


def named(place: str) -> str:
    """A task or data set without the folders of this machine that it lies in."""
    foreign = place.startswith("hub:") or not ("/" in place or "\\" in place)
    return inline(place if foreign else PurePath(place.replace("\\", "/")).name)


def _front(facts: CardFacts, config: Config) -> list[str]:
    # a JSON string is a YAML string too, whatever the name holds
    base = facts.base
    known = [f"base_model: {json.dumps(base.name)}", "base_model_relation: adapter"] if base.kind == "hub" else []
    return [
        "---",
        *known,
        *(f"{name}: {json.dumps(value)}" for name, value in _terms(base.terms).items()),
        "library_name: mlx",
        "pipeline_tag: text-generation",
        f"tags: [mlx, {config.model.adapter.kind}, sdpo, reinforcement-learning]",
        "---",
    ]


def _terms(found: Mapping[str, str]) -> dict[str, str]:
    """The licence as a hub takes it: one identifier, and a link only where it leads somewhere from another page."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", found.get("license", "")):
        return {}
    return {name: value for name, value in found.items() if name != "license_link" or value.startswith("https://")}


def _what(facts: CardFacts) -> list[str]:
    return [f"# {inline(facts.name)}", "", f"An adapter for {facts.base.described()}, {facts.story}", ""]


def _containment(sandbox: str) -> str:
    """How programs that the model wrote were run, where any were."""
    if sandbox == "none":
        return ""
    if sandbox == "unconfined":
        return (
            " **Programs that it wrote in training ran unconfined**, and could have seen or changed their own grading."
        )
    return f" Programs that it wrote in training ran in a sandbox ({inline(sandbox)})."


def _results(facts: CardFacts) -> list[str]:
    rows = [
        f"| {label} | {100 * result.score:.1f} % | {100 * result.low:.1f} to {100 * result.high:.1f} % "
        f"| {result.problems} x {result.samples} |"
        for label, result in (("base model", facts.before), ("this adapter", facts.after))
        if result is not None
    ]
    head = ["## Result on held-out problems", ""]
    if not rows:
        return [*head, facts.unscored, "", *_forgetting(facts.forgetting)]
    table = ["| | score | 95 % interval | problems x samples |", "|---|---|---|---|", *rows]
    return [*head, *table, "", *_forgetting(facts.forgetting)]


def _forgetting(found: Forgetting | None) -> list[str]:
    """What else the training changed, where it was measured."""
    if found is None or found.before is None:
        return []
    return [
        f"On ordinary prompts this adapter diverges from its base by {found.divergence:.4f} nats a token "
        f"(standard error {found.error:.4f}); on an ordinary English text the perplexity went from "
        f"{found.before.perplexity:.2f} to {found.after.perplexity:.2f}.",
        "",
    ]


def _use(facts: CardFacts) -> list[str]:
    base = facts.base.word
    commands = {
        "sdpo-mlx": f"sdpo chat {base} --adapter . --compare   # or: sdpo serve {base} --adapter .",
        "mlx-lm": f'mlx_lm.generate --model {base} --adapter-path . --prompt "..."',
        "LM Studio (MLX)": f"mlx_lm.fuse --model {base} --adapter-path . --save-path ~/.lmstudio/models/sdpo/fused",
        "Ollama": "sdpo export . --to gguf --out gguf && ollama create sdpo -f gguf/Modelfile && ollama run sdpo",
        "vllm": "sdpo export . --to peft --out peft   # prints vllm's own command",
    }
    shown = [line for tool, command in commands.items() for line in (f"# {tool}", command)]
    note = "The lines for Ollama and vllm need the whole folder that sdpo-mlx wrote, the others this adapter alone."
    first = facts.base.before_use()
    return ["## Use", "", "From inside this folder:", "", "```sh", *first, *shown, "```", "", note, ""]


def _settings(facts: CardFacts, config: Config) -> list[str]:
    train, objective = config.train, config.objective
    made = ", ".join(f"{name} {facts.versions[name]}" for name in MADE_WITH if name in facts.versions)
    rows = {
        "objective": f"{objective.kind}, alpha {objective.alpha}, support {objective.support}",
        "teacher": f"{config.teacher.kind}, rate {config.teacher.update_rate}",
        "adapter": f"{config.model.adapter.kind}, rank {config.model.adapter.rank}",
        "learning rate": f"{train.learning_rate:g}, {train.schedule}",
        "rollouts a step": f"{config.rollout.problems_per_step} problems x {config.rollout.group_size}",
        "seed": f"{train.seed}",
        **({"made with": inline(made)} if made else {}),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["## Settings", "", "The complete list is in `config.yaml`.", "", "| | |", "|---|---|", *lines]


def inline(text: str) -> str:
    """One line without the characters that end a code span or a quoted argument."""
    return "".join(each for each in text if each.isprintable() and each not in "`\"$\\'")
