"""HTTP client for a language model: one OpenAI-style request, with limits, retries, a cache and counters.

The key comes from the environment, goes into one header and nowhere else: it is in no error, cache or manifest,
and is never sent on after a redirect, nor over plain HTTP to another machine.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdpo_mlx.config import JudgeConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.core.storage import cache_home, digest, write_bytes
from sdpo_mlx.types import Message

FIRST_WAIT = 1.0  # seconds before the first further try; each later one waits twice as long
LONGEST_WAIT = 30.0
LARGEST_REPLY = 1_000_000  # bytes
WORTH_RETRYING = (408, 409, 425, 429, 500, 502, 503, 504, 529)


class JudgeError(RuntimeError):
    """The judge gave no usable reply; holds neither key nor request."""


class JudgeClient:
    """One endpoint; thread-safe. Replies are cached by request, on disk if the model behind them is known."""

    def __init__(self, cfg: JudgeConfig, endpoint: str, identity: str = "", folder: Path | None = None) -> None:
        """`endpoint` is the base URL up to `/v1`; `identity` names the model, if `cfg.model` does not.

        Raises ConfigError if the key is missing or would leak.
        """
        self.cfg, self._url = cfg, endpoint.rstrip("/") + "/chat/completions"
        self._identity = identity or (f"{self._url} {cfg.model}" if cfg.model else "")
        self._key = _checked_key(cfg, endpoint)
        self._folder = folder or cache_home() / "judge"
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        self._counts = dict.fromkeys(("requests", "cached", "retries", "tokens/in", "tokens/out"), 0)
        self._open = urllib.request.build_opener(_NoRedirect).open

    def ask(self, messages: Sequence[Message]) -> str:
        """Return the reply's text, sampled greedily. Raises JudgeError if all tries failed."""
        body = {"messages": list(messages), "max_tokens": self.cfg.max_tokens, "temperature": 0, "stream": False}
        body |= {"model": self.cfg.model} if self.cfg.model else {}
        content = json.dumps(body, sort_keys=True).encode()
        name = digest(f"{self._identity}\n".encode() + content)
        text = self._known.get(name) or (_kept(self._place(name)) if self._identity else None)
        if text is not None:
            self._count(cached=1)
        else:
            text = self._reply_text(self._retried(content))
            if self._identity:
                with suppress(OSError):  # a full disk costs the cache, not the verdict
                    self._place(name).parent.mkdir(parents=True, exist_ok=True)
                    write_bytes(self._place(name), json.dumps({"text": text}).encode())
        self._known[name] = text
        return text

    def _place(self, name: str) -> Path:
        return self._folder / name[:2] / f"{name}.json"

    def counters(self) -> dict[str, float]:
        """Requests, cached replies, further tries, tokens, and what they cost by the configured prices."""
        with self._lock:
            counts: dict[str, float] = dict(self._counts)
        cost = counts["tokens/in"] * self.cfg.cost_in + counts["tokens/out"] * self.cfg.cost_out
        return {f"judge/{name}": value for name, value in counts.items()} | {"judge/cost": cost / 1e6}

    def _retried(self, content: bytes) -> Mapping[str, Any]:
        """Return the first successful reply."""
        wait, reason = FIRST_WAIT, ""
        for attempt in range(self.cfg.retries + 1):
            if attempt:
                self._count(retries=1)
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            try:
                return self._posted(content)
            except urllib.error.HTTPError as error:
                reason = f"the judge answered {error.code}"
                wait = min(max(wait, _retry_after(error)), LONGEST_WAIT)
                if error.code not in WORTH_RETRYING:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = f"the judge cannot be asked: {type(error).__name__}"
        raise JudgeError(f"{reason} ({urlsplit(self._url).netloc.rpartition('@')[2]})")

    def _posted(self, content: bytes) -> Mapping[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        request = urllib.request.Request(self._url, content, headers, method="POST")
        self._count(requests=1)
        with self._open(request, timeout=self.cfg.seconds) as reply:
            raw = reply.read(LARGEST_REPLY + 1)
        if len(raw) > LARGEST_REPLY:
            raise ValueError("too long a reply")
        found = json.loads(raw)
        if not isinstance(found, dict):
            raise ValueError("no object")
        return found

    def _reply_text(self, reply: Mapping[str, Any]) -> str:
        usage = reply.get("usage")
        if isinstance(usage, dict):
            read, written = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
            self._count(
                **{
                    "tokens/in": read if type(read) is int else 0,
                    "tokens/out": written if type(written) is int else 0,
                }
            )
        try:
            text = reply["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise JudgeError("the judge's reply holds no text")
        return text

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                self._counts[name] += value


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it points."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _checked_key(cfg: JudgeConfig, endpoint: str) -> str:
    """Return the key from the environment; local endpoints need none."""
    parts, key = urlsplit(endpoint), os.environ.get(cfg.key_variable, "").strip()
    local = _is_local(parts.hostname or "")
    if parts.username or parts.password:
        fix = f"put the key into the environment variable {cfg.key_variable}"
        raise ConfigError("the endpoint holds a name or a password", where="judge.endpoint", fix=fix)
    if not key and not local:
        fix = f"export {cfg.key_variable}=..., or name another variable in judge.key_variable"
        raise ConfigError(f"the judge's key is not in the environment ({cfg.key_variable})", where="judge", fix=fix)
    if not local and parts.scheme != "https":
        fix = "use https, so that answers and key cannot be read on the way"
        raise ConfigError("the endpoint is another machine over plain http", where="judge.endpoint", fix=fix)
    if any(not 33 <= ord(character) < 127 for character in key):
        raise ConfigError(f"{cfg.key_variable} holds characters that no key has", where="judge", fix="set it again")
    return key


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _kept(place: Path) -> str | None:
    """Return a reply from the cache; anything unreadable is asked for again."""
    try:
        text = json.loads(place.read_bytes())["text"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return text if isinstance(text, str) else None


def _retry_after(error: urllib.error.HTTPError) -> float:
    """Return the seconds to wait that the server requests."""
    try:
        return max(0.0, float(error.headers.get("Retry-After", "0")))
    except ValueError:
        return 0.0
