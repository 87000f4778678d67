"""`sdpo doctor`: what this machine can do, and how to mend what it can't."""

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
    """Look at everything that training needs; each fault comes with its fix. Ends with 2 where training cannot run.

    Example: sdpo doctor
    """
    from sdpo_cli.diagnostics.checks import examine

    findings = examine()
    usable = all(each.ok for each in findings if each.required)
    if as_json:
        render.document({"ok": usable, "findings": [asdict(each) for each in findings]})
    else:
        render.result(_lines(findings))
    if not usable:
        raise typer.Exit(EXIT_CANNOT_RUN)


def _lines(findings: list[Finding]) -> list[str]:
    """The findings as a table, then the fixes, those first without which nothing runs."""
    lines = render.table(("", "", ""), [(_mark(each), each.name.replace("_", " "), each.found) for each in findings])[
        1:
    ]
    if sys.platform == "darwin":
        lines += ["", "What is asked of macOS was written without a Mac at hand: tell us where it is wrong."]
    faults = sorted((each for each in findings if not each.ok), key=lambda each: not each.required)
    stops = {True: " (training cannot run without it)", False: ""}
    fixes = [(f"{each.name.replace('_', ' ')}:", f"{each.fix}{stops[each.required]}") for each in faults]
    told = [f"  {line}" for line in render.table(("", ""), fixes)[1:]]
    return [*lines, *(["", "to mend:", *told] if told else [])]


def _mark(finding: Finding) -> str:
    if not finding.ok:
        return "no"
    return "--" if not finding.checked or finding.facts.get("missing") else "ok"
