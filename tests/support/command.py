"""Runs `sdpo` in this process or in a child process, and checks that its output is inert."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

from sdpo_cli import main


def sdpo(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main.main(list(words))
    return code, out.getvalue(), err.getvalue()


def process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "sdpo_cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


def harmless(text: str) -> bool:
    """No character that a terminal would act on, but line feeds."""
    return not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
