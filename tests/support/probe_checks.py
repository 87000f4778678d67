"""What a blocked attack leaves behind."""

from __future__ import annotations

import json
from typing import Any

from probes import Attack

# A fault of this kind is one of the attack's program, and then it has proved nothing.
OWN_FAULTS = ("NameError", "TypeError", "AttributeError", "SyntaxError", "KeyError", "IndexError", "AssertionError")


def check_blocked(attack: Attack, status: str, stdout: bytes, *details: object) -> None:
    """The run ended as this attack must end, and what it answered is that it got nothing; details for a failure."""
    assert status == {"answers": "exited"}.get(attack.ends, attack.ends), (status, stdout[-500:], *details)
    if attack.ends == "answers":
        said: dict[str, Any] = json.loads(stdout)
        assert not said["achieved"], said
        assert said["fault"] not in OWN_FAULTS, said
    else:
        assert b"achieved" not in stdout
