"""Serve the run's frozen base model as judge: mlx-lm's server in a child process, on this machine only.

It holds a second copy of the base's weights, without any adapter, and ends with this process, however that happens.
"""

from __future__ import annotations

import atexit
import http.client
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from sdpo_mlx.core.errors import ConfigError

START_SECONDS = 300.0  # large models take their time to load
# The pipe on stdin closes when its owner dies, however that happens; then the server must not live on.
_PROGRAM = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
sys.argv = ["mlx_lm.server", *sys.argv[1:]]
from sdpo_mlx.models.tokenizer import torch_free_imports
with torch_free_imports():
    from mlx_lm.server import main
main()
"""


class BaseServer:
    """A running server; `endpoint` is its base URL."""

    def __init__(self, model: Path, max_tokens: int) -> None:
        """Raises ConfigError if the server does not start."""
        port = _free_port()
        self.endpoint = f"http://127.0.0.1:{port}/v1"
        words = ["--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--log-level", "ERROR"]
        argv = [sys.executable, "-c", _PROGRAM, *words, "--max-tokens", str(max_tokens)]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet)
        atexit.register(self.close)
        self._await(port)

    def close(self) -> None:
        """End the server; safe to call twice."""
        self._process.kill()
        self._process.wait()
        atexit.unregister(self.close)

    def _await(self, port: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if _answers(port):
                return
            time.sleep(0.2)
        self.close()
        fix = "name a server of yours in judge.endpoint"
        raise ConfigError("the base model cannot be served as judge", where="judge.endpoint", fix=fix)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5.0)
    try:
        connection.request("GET", "/health")
        return bool(json.loads(connection.getresponse().read()))
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
