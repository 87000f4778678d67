"""Runs the attacks as whoever starts this script and prints what they said; imports nothing that is installed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from probe_targets import world
from probes import ATTACKS

from sdpo_mlx.sandbox.bubblewrap import BubblewrapSandbox
from sdpo_mlx.sandbox.launch import Limits


def main(groups: list[str]) -> dict[str, Any]:
    """By attack: status and output; and as "harm" what all together have done. Under "bwrap" why nothing runs."""
    os.chdir(tempfile.gettempdir())
    box = BubblewrapSandbox(Limits(memory_mb=400))
    holds = box.self_test()
    if not all(holds.values()):
        return {"bwrap": holds}
    with world() as planted, ThreadPoolExecutor(4) as pool:
        runs = {
            name: pool.submit(box.run, attack.program, planted.ask, seconds=30.0)
            for name, attack in ATTACKS.items()
            if attack.ends == "answers" and attack.group in groups
        }
        said = {name: (run.result().status, run.result().stdout.decode()) for name, run in runs.items()}
        return {"said": said, "harm": planted.harm(), "user": os.getuid()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
