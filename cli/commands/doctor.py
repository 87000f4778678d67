"""`sdpo doctor`: check this machine and suggest fixes; with `--self-test`, compute on it."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from sdpo_cli import options
from sdpo_cli.terminal import render

if TYPE_CHECKING:
    from sdpo_cli.diagnostics.finding import Finding
    from sdpo_cli.diagnostics.self_test import Line

EXIT_CANNOT_RUN = 2


def command(
    as_json: options.AsJson = False,
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Test gradients, generation, resume and sandbox here (minutes).")
    ] = False,
) -> None:
    """Check this machine and suggest fixes.

    Exit code 2 if training cannot run. --self-test needs no network; it prints figures and bounds without paths, user
    or host names, to paste into a bug report; exit code 9 if a line fails.

    Example: sdpo doctor --self-test
    """
    if self_test:
        _self_test(as_json)
        return
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


def _self_test(as_json: bool) -> None:
    from sdpo_cli.diagnostics import self_test

    from sdpo_mlx.core.errors import SelfTestError

    begun, part = time.monotonic(), ""
    lines: list[Line] = []
    for line in self_test.run():
        lines.append(line)
        if not as_json and (now := line.name.partition(":")[0]) != part:
            part = now
            render.message(f"done: {part}")
    seconds, facts = time.monotonic() - begun, self_test.facts()
    failed = [each.name for each in lines if not each.ok]
    document = {"ok": not failed, "seconds": round(seconds, 1), "machine": facts, "lines": [asdict(e) for e in lines]}
    text = [
        *render.columns([(name.replace("_", " "), str(value)) for name, value in facts.items()]),
        "",
        *render.table(["", "check", "figure", "bound", "unit"], [_row(each) for each in lines]),
        "",
        f"{len(lines) - len(failed)} of {len(lines)} lines are good, {seconds:.0f} seconds",
    ]
    render.output(document, text, as_json)
    if failed:
        more = f" and {len(failed) - 1} more" if failed[1:] else ""
        fix = "do not train here before it passes, and report the output above: it holds no paths or names"
        raise SelfTestError(f"the self-test failed: {failed[0]}{more}", fix=fix)


def _row(line: Line) -> tuple[str, ...]:
    figures = (render.number(each) if each is not None else "" for each in (line.figure, line.bound))
    return ("ok" if line.ok else "NO", line.name, *figures, line.note or line.unit)


def _mark(finding: Finding) -> str:
    if not finding.ok:
        return "no"
    return "--" if not finding.checked or finding.facts.get("missing") else "ok"
