"""One thing that `sdpo doctor` looked at; a look that breaks is a finding too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sdpo_mlx.core.errors import SdpoError

AGAIN = "install sdpo-mlx again"


@dataclass(frozen=True)
class Finding:
    """What was found, in words and as `facts` for a program.

    `fix` is for a finding that is not `ok`; `required` where that fault stops `sdpo train`; `checked` is false where
    nobody looked, as at a Mac's settings on Linux.
    """

    name: str
    ok: bool
    found: str
    fix: str = ""
    required: bool = False
    checked: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)


Look = Callable[[], Iterable[Finding]]


def unchecked(name: str, why: str) -> Finding:
    """What was not looked at, and why."""
    return Finding(name, True, f"not checked: {why}", checked=False)


def looked(name: str, look: Look, required: bool = False) -> list[Finding]:
    """What a look finds; where it breaks, that. Never raises.

    `required` counts where it breaks; a fix stands only with a fault, and with every fault.
    """
    try:
        found = list(look())
    except SdpoError as error:
        found = [Finding(name, False, error.what, error.fix, required)]
    except Exception as error:  # a broken machine is what this is for
        found = [Finding(name, False, f"{type(error).__name__}: {error}"[:300], AGAIN, required)]
    return [replace(each, fix="" if each.ok else each.fix or AGAIN) for each in found]
