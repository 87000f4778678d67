"""The model card that lies in a run folder: what was trained, on what, how well, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from sdpo_mlx.config import Config
from sdpo_mlx.forgetting import Forgetting


@dataclass(frozen=True)
class Result:
    """One held-out score with its interval; shares of 1."""

    score: float
    low: float
    high: float
    problems: int
    samples: int


@dataclass(frozen=True)
class CardFacts:
    """What the card tells besides the settings; `base` is what the model's alias became."""

    name: str
    base: str
    revision: str
    steps: int
    generations: int
    before: Result | None = None
    after: Result | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    sandbox: str = "none"
    forgetting: Forgetting | None = None


def model_card(facts: CardFacts, config: Config) -> str:
    """Markdown with the front matter that model hubs read; every name is quoted or fenced as data."""
    return "\n".join([*_front(facts), *_what(facts, config), *_results(facts), *_use(facts), *_settings(config), ""])


def _front(facts: CardFacts) -> list[str]:
    # a JSON string is a YAML string too, whatever the name holds
    return [
        "---",
        f"base_model: {json.dumps(facts.base)}",
        "base_model_relation: adapter",
        "library_name: mlx",
        "pipeline_tag: text-generation",
        "tags: [mlx, lora, sdpo, reinforcement-learning]",
        "---",
    ]


def _what(facts: CardFacts, config: Config) -> list[str]:
    revision = f" at `{_inline(facts.revision)}`" if facts.revision else ""
    data = f" with the problems of `{_inline(config.task.data)}`" if config.task.data else ""
    return [
        f"# {_inline(facts.name)}",
        "",
        f"An adapter for `{_inline(facts.base)}`{revision}, trained by self-distillation policy optimisation "
        f"(SDPO, arXiv 2601.20802) on the task `{_inline(config.task.name)}`{data}: "
        f"{facts.steps} steps, {facts.generations} sampled answers.{_containment(facts.sandbox)}",
        "",
    ]


def _containment(sandbox: str) -> str:
    """How programs that the model wrote were run, where any were."""
    if sandbox == "none":
        return ""
    if sandbox == "unconfined":
        return (
            " **Programs that it wrote in training ran unconfined**, and could have seen or changed their own grading."
        )
    return f" Programs that it wrote in training ran in a sandbox ({_inline(sandbox)})."


def _results(facts: CardFacts) -> list[str]:
    rows = [
        f"| {label} | {100 * result.score:.1f} % | {100 * result.low:.1f} to {100 * result.high:.1f} % "
        f"| {result.problems} x {result.samples} |"
        for label, result in (("base model", facts.before), ("this adapter", facts.after))
        if result is not None
    ]
    head = ["## Result on held-out problems", ""]
    if not rows:
        return [*head, "Not evaluated.", "", *_forgetting(facts.forgetting)]
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
    base = f'"{_inline(facts.base)}"'
    commands = {
        "sdpo-mlx": f"sdpo chat {base} --adapter . --compare   # or: sdpo serve {base} --adapter .",
        "mlx-lm": f'mlx_lm.generate --model {base} --adapter-path . --prompt "..."',
        "LM Studio (MLX)": f"mlx_lm.fuse --model {base} --adapter-path . --save-path ~/.lmstudio/models/sdpo/fused",
        "Ollama": "sdpo export . --to gguf --out gguf && ollama create sdpo -f gguf/Modelfile && ollama run sdpo",
        "vllm": "sdpo export . --to peft --out peft   # prints vllm's own command",
    }
    shown = [line for tool, command in commands.items() for line in (f"# {tool}", command)]
    note = "The lines for Ollama and vllm need the whole run folder, the others this adapter alone."
    return ["## Use", "", "From inside this folder:", "", "```sh", *shown, "```", "", note, ""]


def _settings(config: Config) -> list[str]:
    train, objective = config.train, config.objective
    rows = {
        "objective": f"{objective.kind}, alpha {objective.alpha}, support {objective.support}",
        "teacher": f"{config.teacher.kind}, rate {config.teacher.update_rate}",
        "adapter": f"{config.model.adapter.kind}, rank {config.model.adapter.rank}",
        "learning rate": f"{train.learning_rate:g}, {train.schedule}",
        "rollouts a step": f"{config.rollout.problems_per_step} problems x {config.rollout.group_size}",
        "seed": f"{train.seed}",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["## Settings", "", "The complete list is in `config.yaml`.", "", "| | |", "|---|---|", *lines]


def _inline(text: str) -> str:
    """One line without the characters that end a code span or a quoted argument."""
    return "".join(each for each in text if each.isprintable() and each not in '`"$\\')
