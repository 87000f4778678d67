"""mlx-lm's OpenAI-compatible server, restricted to one model.

By default the server loads whatever model a request names, from the disk or the hub, its remote code included; here
every name means the model that was started. On a CPU it computes in float32, as training does.
"""

from __future__ import annotations

import _thread
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from sdpo_mlx.backends.mlx.limits import device_limits, no_wiring
from sdpo_mlx.backends.mlx.loading import device_name
from sdpo_mlx.backends.mlx.mlx_lm_api import mlx_lm_generate
from sdpo_mlx.config import MemoryConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.hub import root
from sdpo_mlx.models.tokenizer import torch_free_imports

with torch_free_imports():
    from mlx_lm import server


class OneModel(server.ModelProvider):  # type: ignore[misc]  # mlx-lm has no types
    """A provider of one model, whatever a request names."""

    fault: Exception | None = None  # the reason if it could not be loaded

    def load(self, *_asked: Any) -> Any:
        """Return the model and its tokenizer; the model, adapter and draft model of a request are ignored."""
        if self.model_key is None:
            try:
                super().load("default_model", None, "default_model")
            except Exception as error:  # in a thread of the server, which would continue with nothing to serve
                OneModel.fault = error
                _thread.interrupt_main()
                raise SystemExit from error
            if device_name() == "cpu":
                self.model.set_dtype(mx.float32)
        return self.model, self.tokenizer


class StoppingGenerator(server.ResponseGenerator):  # type: ignore[misc]  # mlx-lm has no types
    """Ends chat replies before a text; mlx-lm's stop words end a reply only if it has the tokens of their encoding."""

    stop = ""

    def generate(self, request: Any, *arguments: Any, **options: Any) -> Any:
        """Return what mlx-lm returns, with the responses cut at the stop text."""
        context, responses = super().generate(request, *arguments, **options)
        if self.stop and request.request_type == "chat":
            responses = until(self.stop, responses, context.stop)
        return context, responses


def until(stop: str, responses: Iterator[Any], end: Callable[[], object]) -> Iterator[Any]:
    """Yield mlx-lm's responses up to a text, and call `end` there; those that may begin it are held back."""
    held: list[Any] = []
    for response in responses:
        held.append(response)
        text = "".join(each.text for each in held)
        room = text.find(stop)
        if room >= 0:
            end()
            for each in held:  # without a reason a reply has ended by itself
                yield replace(each, text=each.text[:room], finish_reason=None)
                room = max(0, room - len(each.text))
            return
        if response.finish_reason is not None or not any(text.endswith(stop[:n]) for n in range(1, len(stop))):
            yield from held
            held = []
    yield from held


def serve(
    base: Path,
    adapter: Path | None,
    host: str,
    port: int,
    template: str = "",
    stop: str = "",
    memory: MemoryConfig | None = None,
) -> None:
    """Run mlx-lm's server on one base with its adapter until interrupted.

    `template` replaces the base's chat template if not empty; chat replies end before the text `stop` unless it is
    empty. Raise ConfigError if the address is not free or the model cannot be loaded.
    """
    _free(host, port)
    with suppress(OSError):  # GET /v1/models reads the hub's cache, and fails if there is none
        root().mkdir(parents=True, exist_ok=True)
    OneModel.fault, StoppingGenerator.stop = None, stop
    arguments = ["sdpo serve", "--model", str(base), "--host", host, "--port", str(port), "--log-level", "WARNING"]
    arguments += ["--adapter-path", str(adapter)] if adapter is not None else []
    arguments += ["--chat-template", template] if template else []
    # `main` is the documented entry point: it reads sys.argv and uses the classes of these names.
    with (
        warnings.catch_warnings(),
        _replaced(sys, "argv", arguments),
        _replaced(server, "ModelProvider", OneModel),
        _replaced(server, "ResponseGenerator", StoppingGenerator),
    ):
        warnings.simplefilter("ignore")  # its warning that it is not for production; `sdpo serve` prints one
        with suppress(KeyboardInterrupt), device_limits(memory or MemoryConfig()), no_wiring(server, mlx_lm_generate):
            server.main()
    if OneModel.fault is not None:
        reason = " ".join(str(OneModel.fault).split())[:300]
        fix = "fetch or import the model again, and try `sdpo chat` with it"
        raise ConfigError(f"the model cannot be loaded: {reason}", where=str(base), fix=fix) from OneModel.fault


def _free(host: str, port: int) -> None:
    """Raise ConfigError if the address is not free; checked before a large model loads."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        fix = "choose another --port, or stop the program that uses it"
        raise ConfigError(f"cannot listen: {cause}", where=f"{host}:{port}", fix=fix) from error


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
