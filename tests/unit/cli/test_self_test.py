"""`sdpo doctor --self-test`: lines, isolation of its parts, exit code, and that a wrong gradient fails."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import sdpo
from paths import ROOT
from sdpo_cli.diagnostics import self_test
from sdpo_cli.diagnostics.self_test import Line

pytest.importorskip("mlx.core")


def run_only(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let the self-test consist of these parts."""
    parts = [part for part in self_test.default_parts() if part[0] in names]
    assert len(parts) == len(names)
    monkeypatch.setattr(self_test, "default_parts", lambda: parts)


def short(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx.self_test import gradients

    real = gradients.gaps
    monkeypatch.setattr(gradients, "gaps", lambda policy: real(policy, (2, 9)))


def test_sound_backend_passes_with_figures_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    run_only(monkeypatch, "attention 64, float32", "steps resumed")
    short(monkeypatch)
    code, out, _ = sdpo("doctor", "--self-test", "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (0, True)
    figures = {line["name"].rpartition(": ")[2]: line["figure"] for line in document["lines"]}
    assert 0 < figures["gradient"] < 1e-4  # rounding alone; the bound leaves room for other devices
    assert 0 < figures["loss"] < 1e-5
    assert figures["3 steps, saved and resumed after 2"] == figures["greedy twice"] == 0
    assert all(line["figure"] <= line["bound"] for line in document["lines"])


@pytest.mark.parametrize("factor", [1.1, 0.0, float("nan")])
def test_wrong_gradient_of_one_layer_fails_with_the_exit_code(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    from dataclasses import replace

    from sdpo_mlx.backends.mlx.policy import MLXPolicy

    run_only(monkeypatch, "attention 64, float32")
    short(monkeypatch)
    real = MLXPolicy.gradient

    def wrong(policy: MLXPolicy, *arguments: Any) -> Any:
        found = real(policy, *arguments)
        first = sorted(found.grads)[0]
        return replace(found, grads={**found.grads, first: factor * found.grads[first]})

    monkeypatch.setattr(MLXPolicy, "gradient", wrong)
    code, out, err = sdpo("doctor", "--self-test", "--json")
    document = json.loads(out)
    assert (code, document["ok"]) == (9, False)
    assert [line["name"] for line in document["lines"] if not line["ok"]] == ["attention 64, float32: gradient"]
    assert "the self-test failed: attention 64, float32: gradient" in err
    assert "| 9 |" in (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_rows_that_change_each_other_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from sdpo_mlx.backends.mlx.self_test import generation, models

    real = generation.batch

    def mixed(policy: Any, given: list[Any]) -> Any:
        return real(policy, [*given[:-1], given[-1][::-1].copy()])  # another prompt in one row

    with models.opened(models.MODELS[0]) as policy:
        assert generation.batch_gap(policy) < 1e-4
        monkeypatch.setattr(generation, "batch", mixed)
        assert generation.batch_gap(policy) > self_test.BOUNDS[True]["log-prob"]


def test_part_that_raises_is_a_line_without_paths_or_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken() -> Iterator[Line]:
        yield Line("first", ok=True)
        raise RuntimeError(f"{tmp_path}/model.metal:3 of {getpass.getuser()} on {socket.gethostname()}\n~/x C:\\a\\b.c")

    monkeypatch.setattr(
        self_test, "default_parts", lambda: [("broken", broken), ("next", lambda: [Line("last", True)])]
    )
    code, out, err = sdpo("doctor", "--self-test")
    assert code == 9
    assert "Traceback" not in out + err
    rows = [line.split()[:2] for line in out.splitlines()]
    assert ["ok", "first"] in rows
    assert ["NO", "broken"] in rows
    assert ["ok", "last"] in rows
    for private in (str(tmp_path), getpass.getuser(), socket.gethostname(), "~/x", "a\\b.c"):
        assert private not in out


def test_facts_hold_no_path_or_name() -> None:
    text = json.dumps(self_test.facts())
    assert str(ROOT) not in text
    assert socket.gethostname() not in text
    assert set(self_test.facts()) >= {"mlx", "mlx_lm", "python", "device", "chip", "memory_gb"}


@pytest.mark.slow
def test_whole_self_test_passes_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SDPO_HOME", str(tmp_path))  # its speeds are those of a machine that runs tests
    code, out, _ = sdpo("doctor", "--self-test", "--json")
    document = json.loads(out)
    failed = [
        line for line in document["lines"] if not line["ok"] and not line["name"].startswith(("sandbox", "attack"))
    ]
    assert failed == []
    assert code in (0, 9)
    assert {"speed: float32, prefill", "speed: 4-bit, learning"} <= {line["name"] for line in document["lines"]}
