"""The files of `sdpo init` for each kind of task: example rows, a config, and a custom grader for the task `own`.

The config holds only what differs from the defaults and from the presets of model and task, and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from sdpo_cli.terminal.render import yaml_value

from sdpo_mlx.backends.fit import memory_fit
from sdpo_mlx.config import JudgeConfig, json_schema
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import inventory, resolve

# The kinds of task, in the order in which they are listed.
TASKS: Mapping[str, str] = {
    "own": "graded by your Python function",
    "code": "programming problems, graded by tests",
    "math": "questions with one known answer, compared by value",
    "science": "multiple-choice questions",
    "rubric": "free text, graded by rules (words, lengths, patterns, JSON)",
    "judge": "free text, graded by a language model",
}
ROWS, GRADER, CONFIG, SCHEMA = "problems.jsonl", "my_task.py", "config.yaml", "schema.json"
MOST_SUGGESTED = 8
# The value of task.feedback that explains errors, for tasks that do not by default.
_EXPLAINS: Mapping[str, str] = {"science": "letter"}
_EXPLAINS_BY_DEFAULT = frozenset(("code", "math", "rubric", "judge"))
# Optional settings, as comments at the end of the config.
_OPTIONAL: Mapping[str, Sequence[str]] = {
    "judge": (
        "# The judge is this model itself, frozen. A larger model on an OpenAI-compatible server judges better:",
        "# judge:",
        "#   endpoint: http://127.0.0.1:8080/v1",
    ),
    "code": ("# Time limit of a program in the sandbox:", "# sandbox:", "#   seconds: 6.0"),
}


@dataclass(frozen=True)
class InitChoices:
    """The model, one of TASKS, and whether the grader explains what is wrong."""

    model: str
    task: str = "own"
    feedback: bool = True


@dataclass(frozen=True)
class Suggestion:
    """A model that this machine can train: its name for `--model`, and a short description."""

    name: str
    about: str


def suggestions() -> list[Suggestion]:
    """Return models to choose from: local ones by size, the embedded one, then those that can be downloaded."""
    # A name with control characters could draw on the screen.
    backend = used_backend()
    names = (each for each in inventory.items(backend) if each.name.isprintable())
    found = [(each, memory_fit(each, backend=backend)) for each in names]
    trainable = [(each, fit.peak or 0.0) for each, fit in found if fit.verdict == "yes"]
    here = [pair for pair in trainable if pair[0].path and not pair[0].fetch and pair[0].source != "embedded"]
    # A GGUF is converted on first use, to several times its size: models that load directly come first.
    here.sort(key=lambda pair: (pair[0].source in ("ollama", "gguf"), -pair[1]))
    away = [pair for pair in trainable if pair[0].fetch]
    listed = [Suggestion(each.name, f"local, a step needs about {peak / 2**30:.1f} GB") for each, peak in here]
    listed.append(Suggestion(resolve.EMBEDDED, "included, to check that everything runs; too small to learn this"))
    return listed[:MOST_SUGGESTED] + [
        Suggestion(each.name, f"a step needs about {peak / 2**30:.1f} GB; download: {each.fetch}")
        for each, peak in away
    ]


def used_backend() -> str:
    """Return the backend that `sdpo train -c config.yaml` will use here, since the config leaves it open."""
    from sdpo_mlx.config.resolve import resolve as resolved

    return resolved(None).config.model.backend


def checked_model(name: str) -> str:
    """Return the name for the config, with folders and files as absolute paths, since runs start elsewhere.

    Raises ConfigError for an unknown name.
    """
    source, target = resolve.meaning(name)
    return target if source in ("folder", "gguf") else name


def checked_task(name: str) -> str:
    """Return the name; raises ConfigError for a kind of task without a starter."""
    if name not in TASKS:
        raise ConfigError(f"there is no starter for {name!r}", where="--task", fix=f"choose one of {', '.join(TASKS)}")
    return name


def files(choices: InitChoices) -> dict[str, bytes]:
    """Return the files of the folder by name."""
    assets = resources.files("sdpo_mlx").joinpath("assets", "starter")
    made = {CONFIG: settings(choices).encode(), ROWS: assets.joinpath(f"{choices.task}.jsonl").read_bytes()}
    if choices.task == "own":
        # Stored as text: it is the user's program, not a module of this package.
        made[GRADER] = assets.joinpath(f"{'telling' if choices.feedback else 'plain'}.py.txt").read_bytes()
    return made | {SCHEMA: (json.dumps(json_schema(), indent=2) + "\n").encode()}


def next_steps(choices: InitChoices) -> list[str]:
    """Return the commands to run in the folder, in order."""
    task = f"./{GRADER}" if choices.task == "own" else choices.task
    backend = used_backend()
    fetch = inventory.item(choices.model, backend).fetch
    fetch += " --backend torch" if fetch and backend == "torch" else ""
    judged = choices.task == "judge"  # checking the grader needs the judge
    return [
        f"sdpo data check {ROWS} --task {task}",
        *([] if judged else [f"sdpo tasks check {task} --data {ROWS}"]),
        *([fetch] if fetch else []),
        f"sdpo train -c {CONFIG}",
        *([f"sdpo train -c {CONFIG} --model qwen"] if choices.model == resolve.EMBEDDED else []),
    ]


def settings(choices: InitChoices) -> str:
    """Return the text of config.yaml."""
    judged, note = choices.task == "judge", ""
    if choices.model == resolve.EMBEDDED:
        note = "checks that everything runs, offline; learns nothing here. Then use: qwen"
        note = "too small to judge: use a larger model, or set judge.endpoint" if judged else note
    name = f"./{GRADER}" if choices.task == "own" else choices.task
    task = [_line("name", name), _line("data", f"./{ROWS}", "examples: replace them with your rows")]
    if choices.feedback and choices.task in _EXPLAINS:
        task.append(_line("feedback", _EXPLAINS[choices.task], "names the wrong option; `full` gives the correct one"))
    if not choices.feedback and choices.task in _EXPLAINS_BY_DEFAULT:
        task.append(_line("feedback", "none", "correct or incorrect only"))
    teacher = [] if choices.feedback else [_line("feedback", False, "only correct rollouts of the same group teach")]
    if judged:
        why = "as judge.success: rollouts from this reward on are demonstrations"
        teacher.append(_line("success_threshold", JudgeConfig().success, why))
    sections = {
        "model": [_line("name", choices.model, note)],
        "task": task,
        "rollout": _rollout(choices),
        "teacher": teacher,
        "train": [
            _line("steps", 20, "enough to see whether it learns; the best adapter is saved"),
            _line("eval_every", 5, "steps between evaluations on the held-out rows"),
        ],
    }
    head = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# {choices.task}: {TASKS[choices.task]}.",
        "# Paths are relative to the working directory. `sdpo config show -c config.yaml` shows every setting.",
    ]
    lines = [line for name, inside in sections.items() if inside for line in (f"{name}:", *inside)]
    return "\n".join([*head, *lines, *_OPTIONAL.get(choices.task, ())]) + "\n"


def _rollout(choices: InitChoices) -> list[str]:
    lengths = {"own": 32, "judge": 256}
    why = "each learns from its feedback" if choices.feedback else "a correct one teaches the others"
    lines = [
        _line("problems_per_step", 4),
        _line("group_size", 4 if choices.feedback else 8, f"rollouts per problem: {why}"),
    ]
    if choices.task in lengths:
        lines.append(_line("max_tokens", lengths[choices.task], "of a rollout; a longer one is truncated and fails"))
    return lines


def _line(key: str, value: object, note: str = "") -> str:
    line = f"  {key}: {yaml_value(value)}"
    return f"{line}  # {note}" if note else line
