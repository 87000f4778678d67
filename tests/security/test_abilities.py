"""What every sandbox allows a program: nothing here may fail, as nothing of the attack list may succeed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_mac import CONTAINS_NOTHING, fake_sandbox_exec, pretend_mac
from paths import ROOT
from sdpo_cli.diagnostics import self_test

from sdpo_mlx.sandbox import choice
from sdpo_mlx.sandbox.abilities import MODULES, OPTIONAL, abilities, start_milliseconds
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.seatbelt import SeatbeltSandbox
from sdpo_mlx.sandbox.unconfined import UnconfinedSandbox

BWRAP = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is missing: apt install bubblewrap")


@pytest.mark.parametrize("kind", ["unconfined", "seatbelt", pytest.param("bubblewrap", marks=BWRAP)])
def test_program_may_do_the_same_in_every_sandbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    if kind == "seatbelt":  # its bootstrap, limits and watchdog; what the profile allows only a Mac can tell
        pretend_mac(monkeypatch, tmp_path)
        fake_sandbox_exec(tmp_path, CONTAINS_NOTHING)
    sandboxes = {"unconfined": UnconfinedSandbox, "seatbelt": SeatbeltSandbox, "bubblewrap": BubblewrapSandbox}
    found = abilities(sandboxes[kind]())
    assert set(found) > {f"import {name}" for name in (*MODULES, *OPTIONAL)}
    assert len(found) == len(MODULES) + len(OPTIONAL) + 10
    assert [name for name, ok in found.items() if not ok and name.removeprefix("import ") not in OPTIONAL] == []


class Strict:
    """A sandbox that forbids what programs need, or runs nothing."""

    kind = "strict"

    def __init__(self, before: str) -> None:
        self.before, self.inner = before, UnconfinedSandbox()

    def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
        return self.inner.run(f"{self.before}\n{program}", stdin, seconds=seconds)

    def self_test(self) -> dict[str, bool]:
        return {}


@pytest.mark.parametrize(
    ("before", "failing"),
    [
        ("import sys\nsys.modules['decimal'] = None", {"import decimal", "import statistics", "import fractions"}),
        ("import os\ndef no(*_): raise PermissionError\nos.rename = no", {"work folder"}),
        ("import os\ndef no(*_): raise PermissionError\nos.urandom = no", {"devices"}),
        ("import os\nos.close(1)", {"program runs"}),
    ],
)
def test_sandbox_that_is_too_strict_is_told(before: str, failing: set[str]) -> None:
    found = {name for name, ok in abilities(Strict(before)).items() if not ok}
    assert failing & found
    assert "import json" not in found


def test_self_test_prints_what_is_allowed_and_what_a_start_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: object) -> Sandbox:
        return Strict("import os\nos.fork = None\nimport signal\nsignal.raise_signal = None")

    monkeypatch.setattr(choice, "open_sandbox", opened)
    lines = {line.name: line for line in self_test._sandbox()}
    assert lines["sandbox allows: threads"].ok
    assert not lines["sandbox allows: signals"].ok
    assert (lines["sandbox allows: imports"].figure or 0) >= len(MODULES)
    for name in ("sandbox: start of a program", "sandbox: start without it"):
        assert (lines[name].unit, lines[name].bound) == ("ms", None)
        assert (lines[name].figure or 0) > 0


def test_start_is_timed_by_whole_runs() -> None:
    class Slow(Strict):
        def run(self, program: str, stdin: bytes = b"", *, seconds: float | None = None) -> RunResult:
            return RunResult("exited", 0, b"", b"", 0.25)

    assert start_milliseconds(Slow("")) == 250.0


def test_what_differs_between_systems_is_in_the_documentation() -> None:
    page = (ROOT / "docs/security.md").read_text("utf-8")
    assert all(f"`{name}`" in page for name in (*OPTIONAL, "os.fork", "multiprocessing.Lock", "subprocess"))
    assert "`sdpo_mlx/sandbox/abilities.py`" in page
