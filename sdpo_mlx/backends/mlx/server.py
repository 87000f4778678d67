"""mlx-lm's OpenAI-compatible server, held to one model.

The server as it comes loads whatever model a request names, off the disk or the hub, code of its own included; here
every name means the model that was started. On a CPU it computes in float32, as everything here does.
"""

from __future__ import annotations

import _thread
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from sdpo_mlx.backends.mlx.loading import device_name
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.hub import root
from sdpo_mlx.models.tokenizer import torch_free_imports

with torch_free_imports():
    from mlx_lm import server


class OneModel(server.ModelProvider):  # type: ignore[misc]  # mlx-lm has no types
    """A provider that knows one model, whatever a request asks for."""

    fault: Exception | None = None  # why it could not be loaded

    def load(self, *_asked: Any) -> Any:
        """The model and its tokenizer; what a client asked for (model, adapter, draft model) is ignored."""
        if self.model_key is None:
            try:
                super().load("default_model", None, "default_model")
            except Exception as error:  # in a thread of the server's, which would go on with nothing to serve
                OneModel.fault = error
                _thread.interrupt_main()
                raise SystemExit from error
            if device_name() == "cpu":
                self.model.set_dtype(mx.float32)
        return self.model, self.tokenizer


def serve(base: Path, adapter: Path | None, host: str, port: int) -> None:
    """Serve until interrupted; raises ConfigError where the address cannot be had, or the model not loaded."""
    _free(host, port)
    with suppress(OSError):  # asked for /v1/models it looks through the hub's cache, and fails where there is none
        root().mkdir(parents=True, exist_ok=True)
    OneModel.fault = None
    words = ["sdpo serve", "--model", str(base), "--host", host, "--port", str(port), "--log-level", "WARNING"]
    words += ["--adapter-path", str(adapter)] if adapter is not None else []
    # Its `main` is what mlx-lm documents: flags in, and a provider of this name.
    with warnings.catch_warnings(), _replaced(sys, "argv", words), _replaced(server, "ModelProvider", OneModel):
        warnings.simplefilter("ignore")  # that it checks little; `sdpo serve` says so
        with suppress(KeyboardInterrupt):
            server.main()
    if OneModel.fault is not None:
        said = " ".join(str(OneModel.fault).split())[:300]
        fix = "get or import the model again, and try `sdpo chat` with it"
        raise ConfigError(f"the model cannot be loaded: {said}", where=str(base), fix=fix) from OneModel.fault


def _free(host: str, port: int) -> None:
    """Whether the address can be had, asked before a large model loads."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        fix = "name another --port, or end what listens there"
        raise ConfigError(f"cannot listen: {cause}", where=f"{host}:{port}", fix=fix) from error


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
