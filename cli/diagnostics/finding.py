"""One result of `sdpo doctor`; a check that raises is a finding too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdpo_mlx.core.errors import SdpoError

REINSTALL = "reinstall sdpo-mlx"


@dataclass(frozen=True)
class Finding:
    """What was found, as text and as `facts` for a program.

    `fix` goes with a finding that is not `ok`; `required`: the fault stops `sdpo train`; `checked` is false for a check
    that does not apply, such as a Mac's settings on Linux.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    required: bool = False
    checked: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


Check = Callable[[], Iterable[Finding]]


def run_check(name: str, check: Check, required: bool = False) -> list[Finding]:
    """Return the findings of a check, or its error as one; never raises.

    `required` applies to the error. A finding has a fix if and only if it is not ok.
    """
    try:
        found = list(check())
    except SdpoError as error:
        found = [Finding(name, False, error.what, error.fix, required)]
    except Exception as error:  # a broken installation is what this command is for
        found = [Finding(name, False, f"{type(error).__name__}: {error}"[:300], REINSTALL, required)]
    return [replace(each, fix="" if each.ok else each.fix or REINSTALL) for each in found]
