"""The documentation is correct: commands run, numbers are reproduced, links resolve, settings and fields exist."""

from __future__ import annotations

import gzip
import inspect
import io
import json
import re
import shlex
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from paths import ROOT
from reference import filled as with_reference
from sdpo_cli.grammar import rewritten
from sdpo_cli.main import VERBS, application
from sdpo_cli.main import main as run
from tables import filled

from sdpo_mlx import api
from sdpo_mlx.config import Config, JudgeConfig, TaskConfig
from sdpo_mlx.config.resolve import resolve
from sdpo_mlx.config.templates import template_name
from sdpo_mlx.objective import divergence
from sdpo_mlx.tasks.custom.load import open_file
from sdpo_mlx.tasks.judge.client import JudgeClient

PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
FILES = (".py", ".json", ".jsonl", ".png", ".safetensors")
SMALL = {
    "train": [
        *("--plain", "--steps", "1", "--set", "eval.problems=2"),
        *("--set", "rollout.problems_per_step=2", "--set", "rollout.max_tokens=8"),
    ],
    "eval": ["--problems", "1"],
}


def code_names(text: str) -> set[str]:
    """Return every name in backticks, also those inside a longer code span."""
    return {name for span in re.findall(r"`([^`\n]+)`", text) for name in (span, *re.split(r"[\s,(){}]+", span))}


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_every_command_of_the_tutorial_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and unchanged, except that training and evaluation are short."""
    monkeypatch.chdir(tmp_path)
    lines = commands(ROOT / "docs" / "tutorial.md")
    assert len(lines) >= 10
    for line in lines:
        before, _, piped = line.rpartition(" | ")
        words = shlex.split(piped)
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
            continue
        if before:
            typed = io.TextIOWrapper(io.BytesIO(shlex.split(before)[1].encode()))
            monkeypatch.setattr("sys.stdin", typed)
        assert words[0] == "sdpo"
        assert run([*words[1:], *SMALL.get(words[1], [])]) == 0, line


def test_every_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, as in a notebook; training and evaluation are short."""
    monkeypatch.chdir(tmp_path)
    original = api.train
    short = {"train.steps": 1, "eval.problems": 2, "rollout.problems_per_step": 2}
    short |= {"rollout.group_size": 2, "rollout.max_tokens": 8}

    def train(**options: Any) -> Any:
        return original(**{**options, "settings": {**options.get("settings", {}), **short}})

    monkeypatch.setattr("sdpo_mlx.api.train", train)
    page, namespace = (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), {"__name__": "notebook"}
    examples = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    for example in examples:
        exec(compile(example, "python.md", "exec"), namespace)
    assert len(namespace["rates"]) == 1


def test_python_page_names_every_public_name() -> None:
    named = code_names((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    options = {*api.Options.__annotations__, *inspect.signature(api.train).parameters} - {"options"}
    members = {name for name in vars(api.Run) if not name.startswith("_")} | {"path", "config", "result"}
    assert sorted((options | members) - {re.sub(r"\W.*", "", name) for name in named}) == []


def test_the_worked_example_has_the_numbers_of_the_formulas() -> None:
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8").replace("\N{MINUS SIGN}", "-")
    rows = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| ([-\d.]+), ([-\d.]+), ([-\d.]+) \|$", page, re.MULTILINE)
    p, q = np.array([[0.7, 0.2, 0.1]]), np.array([[0.1, 0.8, 0.1]])
    assert [row[0] for row in rows] == ["0", "0.5", "1"]
    for alpha, value, *gradient in rows:
        found, on_logp = divergence(np.log(p), np.log(q), float(alpha))
        on_logits = on_logp - p * on_logp.sum()
        assert found[0] == pytest.approx(float(value), abs=5e-5)
        assert on_logits[0] == pytest.approx([float(x) for x in gradient], abs=5e-5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_every_file_of_the_repository_that_is_named_exists(page: Path) -> None:
    folders = "sdpo_mlx|cli|configs|tests|benchmarks|examples|docs"
    named = re.findall(rf"[`( ]((?:{folders})/[\w./-]*\w\.\w+)", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def keys(model: Any, prefix: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation if hasattr(field.annotation, "model_fields") else None
        found |= {prefix + name} | (keys(inner, f"{prefix}{name}.") if inner else set())
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    sections = "|".join(Config.model_fields)
    named = re.findall(rf"`(?:--set )?((?:{sections})\.[a-z_.]+)(?:[=:][^`]*)?[` ]", page.read_text(encoding="utf-8"))
    known = keys(Config)
    assert [name for name in named if name not in known and not name.endswith(FILES)] == []


def test_table_of_defaults_has_ours_and_those_of_the_paper_presets() -> None:
    """A third column that says "not set in the presets" is not compared; `(livecodebench X)` is that preset's value."""
    presets = {path.stem: resolve(path, [], {}).config for path in (ROOT / "configs" / "paper").glob("*.yaml")}
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.[\w.]+)` \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE)
    compared = [row for row in rows if row[0].split(".")[0] in Config.model_fields]
    assert len(compared) >= 30
    for name, ours, paper in compared:
        assert _shown(name, Config()) == ours, name
        if "not set in the presets" not in paper:
            usual, _, livecodebench = paper.rstrip(")").partition(" (livecodebench ")
            expected = {"science": usual, "tools": usual, "livecodebench": livecodebench or usual}
            assert {each: _shown(name, cfg) for each, cfg in presets.items()} == expected, name


def _shown(name: str, cfg: Config) -> str:
    value = attrgetter(name)(cfg)
    if name == "teacher.template":
        return template_name(value)
    if isinstance(value, float) and value < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.mark.parametrize("name", ["all-settings.md", "api.md"])
def test_reference_pages_are_those_of_this_version(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert with_reference(text) == text, "run: python benchmarks/reference.py"


def test_commands_page_has_every_option_and_no_other() -> None:
    """By words, since typer's versions lay a help out differently."""

    def words(text: str) -> dict[str, set[str]]:
        sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
        return {
            part.partition("\n")[0]: set(re.findall(r"(?<!\S)--?[a-z][a-z-]*|[A-Z][a-z]+", part)) for part in sections
        }

    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert words(page) == words(with_reference(page)), "run: python benchmarks/reference.py"


def test_every_command_line_of_the_pages_is_accepted() -> None:
    """By the parser of its command; those of recordings and of inline code are left out."""
    seen = 0
    for page in PAGES:
        text = re.sub(r"^```text\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for line in re.findall(r"^(?:    )?sdpo ([a-z].*)$", text.replace("\\\n", " "), re.MULTILINE):
            words = shlex.split(re.split(r"\s#|&&|\s[|>]\s", line)[0])
            if words[0] not in VERBS:  # prose
                continue
            words = rewritten(words, VERBS)
            command: Any = typer.main.get_command(application(words))
            while words and words[0] in getattr(command, "commands", ()):
                command, words = command.commands[words[0]], words[1:]
            try:
                command.make_context("sdpo", words)
            except Exception as error:
                pytest.fail(f"{page.name}: sdpo {line}: {error}")
            seen += 1
    assert seen >= 100


def test_every_task_file_of_the_page_is_a_task(tmp_path: Path) -> None:
    pages = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("custom-tasks.md", "index.md"))
    found = re.findall(r"^```python\n(.*?)^```", pages, re.MULTILINE | re.DOTALL)
    examples = [example for example in found if "def grade" in example]
    assert len(examples) >= 7
    for number, example in enumerate(examples):
        (tmp_path / f"task{number}.py").write_text(example, encoding="utf-8")
        task = open_file(TaskConfig(name=str(tmp_path / f"task{number}.py")))
        problem, *rest = [*task.problems("train"), *task.problems("held_out")]
        assert rest
        assert task.grade_turns(problem, ["no answer"], truncated=True).reward < 1
        assert not task.replies or task.reply(problem, ["1"]) == "Higher."
    assert open_file(TaskConfig(name=f"{tmp_path / 'task4.py'}:hard")).problems("train")[0].id == "101"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "<!-- table:" in page.read_text()], ids=lambda page: page.name
)
def test_tables_hold_the_figures_that_were_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python benchmarks/tables.py"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that was evaluated, resumed, evaluated from outside and reported."""
    folder = tmp_path_factory.mktemp("formats") / "run"
    train = ["train", "--model", "tiny", "--task", "tiny", "--plain", "--out", str(folder), "--set", "eval.problems=2"]
    for steps in ("1", "2"):
        assert run([*train, "--steps", steps, "--set", "rollout.problems_per_step=2", "--max-tokens", "8"]) == 0
    assert run(["eval", str(folder), "--problems", "1", "--group-size", "1"]) == 0
    assert run(["report", str(folder)]) == 0
    return folder


def test_formats_page_names_every_event_and_its_fields(run_folder: Path) -> None:
    named = code_names((ROOT / "docs" / "formats.md").read_text(encoding="utf-8"))
    events = [json.loads(line) for line in (run_folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    emitted = {event["type"] for event in events}
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "sdpo_mlx").rglob("*.py"))
    emitted |= set(re.findall(r"emit\(\s*\{\s*\"type\": \"(\w+)\"", source))
    assert emitted >= {"run_started", "step", "eval", "checkpoint", "resumed", "run_finished", "warning", "lesson"}
    fields = {re.sub(r"@\d+$", "@<n>", name) for event in events for name in event}
    fields |= JudgeClient(JudgeConfig(), "http://127.0.0.1/v1", folder=run_folder).counters().keys()
    assert sorted((emitted | fields) - named) == []


def test_formats_page_names_every_file_of_a_run_folder(run_folder: Path) -> None:
    named = code_names((ROOT / "docs" / "formats.md").read_text(encoding="utf-8"))
    for file in run_folder.rglob("*"):
        if file.is_file():
            top, *below = file.relative_to(run_folder).parts
            assert any(name.startswith(f"{top}/") if below else name == top for name in named), file
    rows = gzip.decompress((run_folder / "rollouts" / "step-000001.jsonl.gz").read_bytes()).splitlines()
    assert sorted({key for row in rows for key in json.loads(row)} - named) == []
    assert sorted(json.loads((run_folder / "manifest.json").read_text(encoding="utf-8")).keys() - named) == []


def test_benchmarks_have_the_options_that_pages_give_them() -> None:
    found = {
        (name, option)
        for page in PAGES
        for name, rest in re.findall(r"`python\s+benchmarks/(\w+\.py)([^`|]*)`", page.read_text(encoding="utf-8"))
        for option in re.findall(r"(?<=\s)--[a-z][a-z-]+", rest)
    }
    assert len(found) >= 10
    sources = {name: (ROOT / "benchmarks" / name).read_text(encoding="utf-8") for name, _ in found}
    assert [(name, option) for name, option in sorted(found) if f'"{option}"' not in sources[name]] == []
