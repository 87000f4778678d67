"""`sdpo probe`: its document, the settings that it writes, and what it says of mistakes and Ctrl-C."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import harmless, sdpo
from sdpo_cli.commands.probe import as_lines

from sdpo_mlx.config.resolve import resolve

pytestmark = pytest.mark.long
SMALL = ["--problems", "6", "--rollouts", "1", "--max-tokens", "24", "--plain"]
TRAIN = ["--steps", "1", "--plain", "--set", "eval.problems=1", "--set", "rollout.problems_per_step=2"]
KEYS = {"model", "task", "seed", "problems", "rollouts", "student", "contexts", "left_out", "verdict", "sentence"}
KEYS |= {"settings", "needed", "answers", "tokens", "seconds"}
CONTEXT = {"name", "template", "success", "student", "problems", "answers", "gain", "interval", "shift", "recommended"}
SHIFT = {"right", "wrong", "right_after", "wrong_after", "difference", "interval", "problems", "pairs"}


@pytest.fixture(autouse=True)
def _no_measured_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speed of this machine takes two seconds to measure; a folder of its own."""
    monkeypatch.setattr("sdpo_mlx.backends.mlx.device.block_gigaflops", lambda: 50.0)
    monkeypatch.setattr("sdpo_mlx.backends.mlx.device.gigabytes", lambda: 5.0)


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The document of one probe, its messages, and the file that it wrote."""
    file = tmp_path_factory.mktemp("probe") / "best.yaml"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sdpo_mlx.backends.mlx.device.block_gigaflops", lambda: 50.0)
        patch.setattr("sdpo_mlx.backends.mlx.device.gigabytes", lambda: 5.0)
        code, out, err = sdpo("probe", "--model", "tiny", "--task", "tiny", *SMALL, "--write", str(file), "--json")
    assert code == 0, err
    return json.loads(out), err, file


def test_document_has_the_keys_of_the_formats_page(probed: tuple[dict[str, Any], str, Path]) -> None:
    document = probed[0]
    assert set(document) == KEYS
    assert set(document["student"]) == {"success", "low", "high"}
    for context in document["contexts"]:
        assert set(context) == CONTEXT
        assert set(context["shift"]) == SHIFT
        assert set(context["interval"]) == {"low", "high"}
    assert document["verdict"] in ("learns", "does not learn", "undecided")
    assert sum(context["recommended"] for context in document["contexts"]) == (document["verdict"] == "learns")
    assert document["rollouts"] == 1
    sampled = 6 * 2 + sum(context["answers"] for context in document["contexts"])
    assert document["answers"] == sampled


def test_cost_is_said_before_anything_is_sampled(probed: tuple[dict[str, Any], str, Path]) -> None:
    document, err, _ = probed
    (line,) = [line for line in err.splitlines() if line.startswith("probe: ")]
    most = int(line.split()[3].replace(",", ""))
    assert document["answers"] <= most
    assert document["tokens"] <= most * 24
    assert "6 problems" in line
    assert "about 0:0" in line


def test_text_has_a_row_for_each_context_and_the_verdict(probed: tuple[dict[str, Any], str, Path]) -> None:
    document, _, file = probed
    lines = as_lines(document, file)
    assert len([line for line in lines if "/6 " in line]) == len(document["contexts"])
    assert f"verdict  {document['verdict']}: {document['sentence']}" in lines
    assert lines[-1] == f"written to {file}: sdpo train -c {file}"
    assert harmless("\n".join(lines))


def test_written_settings_are_the_recommended_ones_and_train(
    probed: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    document, _, file = probed
    assert file.read_text(encoding="utf-8").startswith(f"# sdpo probe: {document['verdict']}. ")
    found = resolve(file).config
    assert (found.model.name, found.task.name, found.rollout.max_tokens) == ("tiny", "tiny", 24)
    for key, value in document["settings"].items():
        section, _, name = key.partition(".")
        assert getattr(getattr(found, section), name) == value, key
    code, _, err = sdpo("train", "--config", str(file), *TRAIN, "--out", str(tmp_path / "run"))
    assert code == 0, err
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    (event,) = [
        event
        for event in map(json.loads, (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines())
        if event["type"] == "probe"
    ]
    assert f"Before training, on problems of the first step: {event['sentence']}." in card


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--model", "tinny"], 2, "Did you mean 'tiny'"),
        (["--problems", "0"], 2, "--problems"),
        (["--rollouts", "many"], 2, "--group-size"),
        (["--backend", "jax"], 2, "model.backend"),
        (["--set", "teacher.template=fact"], 2, "facts"),
        (["--write", "absent/best.yaml"], 5, "absent/best.yaml"),
        (["--task", "tiny", "--data", "rows.jsonl"], 2, "task.data"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_mistake_is_one_line_and_its_code(words: list[str], code: int, message: str) -> None:
    found, out, err = sdpo("probe", *words)
    assert (found, out) == (code, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


def test_ctrl_c_ends_with_its_code_and_writes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stopped(*_: Any, interrupted: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        raise KeyboardInterrupt

    monkeypatch.setattr("sdpo_mlx.evaluation.probe.probe", stopped)
    code, out, err = sdpo("probe", *SMALL, "--write", str(tmp_path / "best.yaml"))
    assert (code, out) == (130, "")
    assert "interrupted" in err
    assert not (tmp_path / "best.yaml").exists()


def test_torch_has_no_estimate_of_time() -> None:
    from sdpo_cli.commands.probe import pass_seconds

    parts: Any = SimpleNamespace(cfg=None, policy=SimpleNamespace(info=SimpleNamespace(backend="torch")))
    assert pass_seconds(parts, 4, 4) == 0.0
