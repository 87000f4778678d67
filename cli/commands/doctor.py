"""`sdpo doctor`: check this machine and suggest fixes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_cli.diagnostics.finding import Finding

EXIT_CANNOT_RUN = 2


def command(as_json: options.AsJson = False) -> None:
    """Check this machine and suggest fixes.

    Exit code 2 if training cannot run.

    Example: sdpo doctor
    """
    from sdpo_cli.diagnostics.checks import examine

    findings = examine()
    usable = all(each.ok for each in findings if each.required)
    lines = render.columns([(_mark(each), each.name.replace("_", " "), each.found) for each in findings])
    if sys.platform == "darwin":
        lines += ["", "The macOS checks have not been tested on a Mac yet. Please report what is wrong."]
    faults = sorted((each for each in findings if not each.ok), key=lambda each: not each.required)
    notes = {True: " (training cannot run without it)", False: ""}
    fixes = [(f"{each.name.replace('_', ' ')}:", f"{each.fix}{notes[each.required]}") for each in faults]
    lines += ["", "to fix:", *(f"  {line}" for line in render.columns(fixes))] if fixes else []
    render.output({"ok": usable, "findings": [asdict(each) for each in findings]}, lines, as_json)
    if not usable:
        raise typer.Exit(EXIT_CANNOT_RUN)


def _mark(finding: Finding) -> str:
    if not finding.ok:
        return "no"
    return "--" if not finding.checked or finding.facts.get("missing") else "ok"
