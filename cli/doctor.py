"""`sdpo doctor`: what this machine can do, and how to mend what it can't."""

from __future__ import annotations

from dataclasses import asdict

import typer
from sdpo_cli import options, render

EXIT_CANNOT_RUN = 2


def command(as_json: options.AsJson = False) -> None:
    """Look at everything that training needs; each fault comes with its fix.

    Example: sdpo doctor
    """
    from sdpo_mlx.machine import examine

    findings = examine()
    usable = all(each.ok for each in findings if each.required)
    if as_json:
        render.document({"ok": usable, "findings": [asdict(each) for each in findings]})
    else:
        lines = render.table(("", "", ""), [("ok" if f.ok else "no", f.name, f.found) for f in findings])[1:]
        fixes = [f"  {f.name}: {f.fix}" for f in findings if not f.ok and f.fix]
        render.result([*lines, *(["", "to mend:", *fixes] if fixes else [])])
    if not usable:
        raise typer.Exit(EXIT_CANNOT_RUN)
