"""The recorded screens of docs/terminal.md, and the recorder that makes them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
import screens

RECORDED = screens.screens_in(screens.PAGE.read_text(encoding="utf-8"))


def test_page_shows_every_command_that_is_recorded() -> None:
    page = screens.PAGE.read_text(encoding="utf-8")
    possible = {screen.name for screen in screens.SCREENS}
    possible |= {f"{screen.name}-running" for screen in screens.SCREENS if screen.middle}
    assert page.count("<!-- screen ") == len(RECORDED)
    assert set(RECORDED) <= possible
    assert {name.removesuffix("-running") for name in RECORDED} == {screen.name for screen in screens.SCREENS}


def test_a_recording_replaces_its_block_alone() -> None:
    page = screens.PAGE.read_text(encoding="utf-8")
    assert screens.put_into(page, RECORDED) == page
    changed = screens.put_into(page, {"runs": "new\n", "absent": "x\n"})
    assert screens.screens_in(changed) == {**RECORDED, "runs": "new\n"}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_recording_fits_its_screen_and_has_no_local_path(name: str) -> None:
    screen = next(each for each in screens.SCREENS if name in (each.name, f"{each.name}-running"))
    lines = RECORDED[name].splitlines()
    assert len(lines) <= screen.lines
    assert max(map(len, lines)) <= screen.columns
    assert screens.neutral(RECORDED[name]) == RECORDED[name]
    assert not re.search(r"(?<![\w./:])/(?:tmp|home|root|work|usr|opt|Users)\b", RECORDED[name])


def test_machine_figures_become_placeholders_and_the_frame_stays() -> None:
    line = "│ now   12/64  0:42 left, /tmp/x/y.z  │"
    made = screens.neutral(f"{line}\n1:02:03 of 17.7 GB, Linux-6.1-glibc  \n")
    first, second, *rest = made.split("\n")
    assert first == "│ now   12/64  -:-- left, /.../y.z    │"
    assert second == "-:-- of N GB, Linux"
    assert rest == [""]


def test_recorder_catches_the_running_and_the_final_screen(tmp_path: Path) -> None:
    pytest.importorskip("pyte", reason="pyte, a terminal to look at, is not installed")
    program = tmp_path / "shows.py"
    program.write_text(
        "import os, sys, time\n"
        "print(*os.get_terminal_size(), sys.stdout.isatty(), flush=True)\n"
        "print('\\x1b[1A\\x1b[2Kmiddle', end='', flush=True); time.sleep(0.1); print('\\rend   ')\n"
    )
    screen = screens.Screen("small", f"{sys.executable} {program}", 200, 5, middle="middle")
    found = screens.recorded(screen, tmp_path, os.environ)
    assert found["small-running"].splitlines()[1:] == ["middle"]
    assert found["small"].splitlines()[1:] == ["end"]
    sized = screens.Screen("sized", f"{sys.executable} -c 'import os; print(*os.get_terminal_size())'", 150, 3)
    assert screens.recorded(sized, tmp_path, os.environ)["sized"].splitlines()[1] == "150 3"
