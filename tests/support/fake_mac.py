"""A machine that says it is a Mac, with a stand-in for `sandbox-exec`."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from sdpo_mlx.sandbox import choice, seatbelt

CONTAINS_NOTHING = '[ "$1" = -p ] || exit 9\nshift 2\nexec "$@"'


def pretend_mac(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """`sandbox-exec` and what the start remembers lie in `folder`."""
    monkeypatch.setattr(choice.sys, "platform", "darwin")
    monkeypatch.setattr(seatbelt, "SANDBOX_EXEC", str(folder / "sandbox-exec"))
    monkeypatch.setattr(seatbelt, "OWNER", os.getuid())
    monkeypatch.setenv("SDPO_HOME", str(folder / "cache"))


def fake_sandbox_exec(folder: Path, script: str) -> None:
    """Make `sandbox-exec` a shell script."""
    program = folder / "sandbox-exec"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
