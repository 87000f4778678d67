"""A starter folder for each kind of task: example rows, the settings that fit, and a grader where it is one's own.

The settings say only what differs from the defaults and from the presets of model and task, and why.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml

from sdpo_mlx.backends.fit import memory_fit
from sdpo_mlx.config import JudgeConfig, json_schema
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models import inventory, resolve

# What the environment is, in the order in which a person is asked.
TASKS: Mapping[str, str] = {
    "own": "graded by a Python function of yours",
    "code": "programming problems, graded by their tests",
    "math": "questions with one known answer, compared by value",
    "science": "multiple-choice questions",
    "rubric": "free text, checked by rules (words, lengths, patterns, JSON)",
    "judge": "free text, judged by a language model",
}
ROWS, GRADER, SETTINGS, SCHEMA = "problems.jsonl", "my_task.py", "config.yaml", "schema.json"
MOST_SUGGESTED = 8
# What the environment says where it says more than right or wrong; others do so by default.
_SPEAKS: Mapping[str, str] = {"science": "letter"}
_SILENT = frozenset(("code", "math", "rubric", "judge"))  # tasks that must be told to say nothing


@dataclass(frozen=True)
class InitChoices:
    """The three questions: which model, which of TASKS, and whether the environment says what was wrong."""

    model: str
    task: str = "own"
    feedback: bool = True


@dataclass(frozen=True)
class Suggestion:
    """A model that this machine can train, by the name that `--model` takes, and a few words on it."""

    name: str
    about: str


def suggestions() -> list[Suggestion]:
    """Models to choose from, the best first: those here by size, the embedded one, and what could be fetched."""
    # A name with control characters in it could draw on the screen where it is proposed.
    found = [(each, memory_fit(each)) for each in inventory.items() if each.name.isprintable()]
    trainable = [(each, told.peak or 0.0) for each, told in found if told.verdict == "yes"]
    here = [pair for pair in trainable if pair[0].path and not pair[0].fetch and pair[0].source != "embedded"]
    # A GGUF is unpacked on first use, to several times its size: what can be loaded as it is comes first.
    here.sort(key=lambda pair: (pair[0].source in ("ollama", "gguf"), -pair[1]))
    away = [pair for pair in trainable if pair[0].fetch]
    listed = [Suggestion(each.name, f"here, a step holds about {peak / 2**30:.1f} GB") for each, peak in here]
    listed.append(Suggestion(resolve.EMBEDDED, "here, proves that everything runs; too small to learn this"))
    return listed[:MOST_SUGGESTED] + [
        Suggestion(each.name, f"a step holds about {peak / 2**30:.1f} GB; get it with: {each.fetch}")
        for each, peak in away
    ]


def checked_model(name: str) -> str:
    """The name as the settings should hold it: folders and files absolute, for one starts from another folder.

    Raises ConfigError for a name that means nothing.
    """
    source, target = resolve.meaning(name)
    return target if source in ("folder", "gguf") else name


def checked_task(name: str) -> str:
    """Raises ConfigError for a kind of task that there is no starter for."""
    if name not in TASKS:
        raise ConfigError(f"there is no starter for {name!r}", where="--task", fix=f"choose one of {', '.join(TASKS)}")
    return name


def files(answers: InitChoices) -> dict[str, bytes]:
    """The folder's files by name."""
    kept = resources.files("sdpo_mlx").joinpath("assets", "starter")
    made = {SETTINGS: settings(answers).encode(), ROWS: kept.joinpath(f"{answers.task}.jsonl").read_bytes()}
    if answers.task == "own":
        # A program of the user's is no module of ours, and lies there as a text.
        made[GRADER] = kept.joinpath(f"{'telling' if answers.feedback else 'plain'}.py.txt").read_bytes()
    return made | {SCHEMA: (json.dumps(json_schema(), indent=2) + "\n").encode()}


def next_steps(answers: InitChoices) -> list[str]:
    """Commands to type in the folder, one after the other."""
    task = f"./{GRADER}" if answers.task == "own" else answers.task
    fetch = inventory.item(answers.model).fetch
    judged = answers.task == "judge"  # checking its grader would need the judge
    return [
        f"sdpo data check {ROWS} --task {task}",
        *([] if judged else [f"sdpo tasks check {task} --data {ROWS}"]),
        *([fetch] if fetch else []),
        f"sdpo train -c {SETTINGS}",
        *([f"sdpo train -c {SETTINGS} --model qwen"] if answers.model == resolve.EMBEDDED else []),
    ]


def settings(answers: InitChoices) -> str:
    """The text of config.yaml."""
    sections = {
        "model": [_line("name", answers.model, _model_note(answers))],
        "task": _task(answers),
        "rollout": _rollout(answers),
        "teacher": _teacher(answers),
        "train": [
            _line("steps", 20, "enough to see whether it learns; the best adapter is kept"),
            _line("eval_every", 5, "steps between evaluations on the held-out rows"),
        ],
    }
    head = [
        f"# yaml-language-server: $schema={SCHEMA}",
        f"# {answers.task}: {TASKS[answers.task]}.",
        "# Paths are read from the folder you stand in. `sdpo config show -c config.yaml` shows every setting.",
    ]
    lines = [line for name, inside in sections.items() if inside for line in (f"{name}:", *inside)]
    return "\n".join([*head, *lines, *_afterwards(answers)]) + "\n"


def _task(answers: InitChoices) -> list[str]:
    name = f"./{GRADER}" if answers.task == "own" else answers.task
    lines = [_line("name", name), _line("data", f"./{ROWS}", "examples: put your own rows here")]
    if answers.feedback and answers.task in _SPEAKS:
        lines.append(
            _line("feedback", _SPEAKS[answers.task], "says which option was wrong; `full` gives the right one")
        )
    if not answers.feedback and answers.task in _SILENT:
        lines.append(_line("feedback", "none", "right or wrong only"))
    return lines


def _rollout(answers: InitChoices) -> list[str]:
    lengths = {"own": 32, "judge": 256}
    why = "each answer learns from what was said of it" if answers.feedback else "one right answer teaches the others"
    lines = [
        _line("problems_per_step", 4),
        _line("group_size", 4 if answers.feedback else 8, f"answers a problem: {why}"),
    ]
    if answers.task in lengths:
        lines.append(_line("max_tokens", lengths[answers.task], "of an answer; what is longer is cut off and fails"))
    return lines


def _teacher(answers: InitChoices) -> list[str]:
    lines = [] if answers.feedback else [_line("feedback", False, "right answers of the same group teach alone")]
    if answers.task == "judge":
        share = JudgeConfig().success
        lines.append(_line("success_threshold", share, "as judge.success: answers so good are shown to the others"))
    return lines


def _afterwards(answers: InitChoices) -> Sequence[str]:
    """What may be set besides, as comments."""
    if answers.task == "judge":
        return (
            "# The judge is this model itself, frozen. A larger one behind an OpenAI-compatible server judges better:",
            "# judge:",
            "#   endpoint: http://127.0.0.1:8080/v1",
        )
    if answers.task == "code":
        return (
            "# Programs run in the sandbox for at most so long:",
            "# sandbox:",
            "#   seconds: 6.0",
        )
    return ()


def _model_note(answers: InitChoices) -> str:
    if answers.model != resolve.EMBEDDED:
        return ""
    if answers.task == "judge":
        return "too small to judge: name a larger one, or set judge.endpoint"
    return "proves that everything runs, offline; learns nothing here. Then write: qwen"


def _line(key: str, value: object, note: str = "") -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6)
    line = f"  {key}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"
    return f"{line}  # {note}" if note else line
