"""HTTP for OpenAI's clients: routes, key, size of a body, errors, and clients that leave."""

from __future__ import annotations

import hmac
import json
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Semaphore
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from sdpo_mlx.backends.serving.jobs import failed
from sdpo_mlx.backends.serving.replies import Reply, event
from sdpo_mlx.backends.serving.requests import ApiError, ChatRequest, CompletionRequest, Request, parsed

MAX_BODY = 8 << 20  # bytes; a prompt of 128,000 tokens has less than 1 MB
MAX_REQUESTS = 256  # computed or waiting at once; more would only time out at their clients
RETRY_SECONDS = 5  # OpenAI's clients wait so long, and try again twice
CLIENT_SECONDS = 60.0  # a client that neither sends nor reads for so long is left
DRAIN_SECONDS = 2.0

ROUTES: dict[str, type[ChatRequest] | type[CompletionRequest]] = {
    "/v1/chat/completions": ChatRequest,
    "/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/completions": CompletionRequest,
}


class Service(Protocol):
    """What answers requests."""

    names: Sequence[str]

    def begin(self, request: Request) -> Reply:
        """Start a request; raise ApiError for one that cannot be answered."""


class Server(ThreadingHTTPServer):
    """Listens, one thread a connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, service: Service, key: str, report: Callable[[str], None]) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self.service, self.key, self.report = service, key, report
        self.started, self._places = int(time.time()), Semaphore(MAX_REQUESTS)
        super().__init__((host, port), Handler)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count one request; raise ApiError 429 if MAX_REQUESTS are computed or wait already."""
        if not self._places.acquire(blocking=False):
            what = f"{MAX_REQUESTS} requests are computed or wait already; try again in {RETRY_SECONDS} seconds"
            raise ApiError(429, what, code="too_many_requests", retry=RETRY_SECONDS)
        try:
            yield
        finally:
            self._places.release()

    def handle_error(self, *_: Any) -> None:
        """A connection that broke ends quietly: http.server would print a traceback."""


def answered(method: Callable[[Handler], None]) -> Callable[[Handler], None]:
    """Check the key, and turn what a request raises into an answer."""

    @wraps(method)
    def run(self: Handler) -> None:
        try:
            self.authorise()
            method(self)
        except ApiError as error:
            if error.status >= 500:
                self.server.report(f"{self.path}: {error}")
            self.fail(error)
        except OSError:
            self.close_connection = True  # the client has left
        except Exception as error:  # of a template, a tokenizer, or a tool's schema
            self.server.report(f"{self.path}: {type(error).__name__}: {error}")
            self.fail(failed(error))

    return run


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    timeout = CLIENT_SECONDS

    @answered
    def do_GET(self) -> None:
        """Answer `/health` and `/v1/models`."""
        path = unquote(urlsplit(self.path).path).rstrip("/")
        if path == "/health":
            self._send(200, {"status": "ok"})
            return
        models = [
            {"id": name, "object": "model", "created": self.server.started, "owned_by": "sdpo"}
            for name in self.server.service.names
        ]
        if path in ("/v1/models", "/models"):
            self._send(200, {"object": "list", "data": models})
            return
        found = [each for each in models if path == f"/v1/models/{each['id']}"]
        if not found:
            raise ApiError(404, f"no such address: GET {path}; there are /v1/models and /health")
        self._send(200, found[0])

    @answered
    def do_POST(self) -> None:
        """Answer a request for a completion."""
        body = self._body()
        path = urlsplit(self.path).path.rstrip("/")
        if path not in ROUTES:
            raise ApiError(404, f"{path} is not supported; use /v1/chat/completions or /v1/completions")
        request = parsed(ROUTES[path], body)
        with self.server.place():
            reply = self.server.service.begin(request)
            try:
                if request.stream:
                    self._stream(reply)
                else:
                    self._whole(reply)
            finally:
                reply.job.cancel()

    def do_OPTIONS(self) -> None:
        """Answer a browser's question."""
        self._headers(204, "text/plain", 0)

    def log_message(self, *_: Any) -> None:
        """No line for each request."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what http.server refuses, in the form of the other errors."""
        del explain
        self.fail(ApiError(400 if code < 500 or code == 501 else code, message or "bad request"))

    def authorise(self) -> None:
        """Raise ApiError 401 if the server has a key and the request has another one."""
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if self.server.key and not hmac.compare_digest(given.encode(), self.server.key.encode()):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _body(self) -> bytes:
        try:
            size = int(self.headers.get("Content-Length", ""))
        except ValueError:
            raise ApiError(400, "the header Content-Length is missing or is no number") from None
        if size < 0:
            raise ApiError(400, "the header Content-Length is negative")
        if size > MAX_BODY:
            raise ApiError(413, f"the body has {size} bytes; at most {MAX_BODY} are accepted", code="request_too_large")
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError
        return body

    def _gone(self) -> bool:
        """Return whether the client has closed its connection."""
        try:
            readable = select.select([self.connection], [], [], 0)[0]
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except (OSError, ValueError):
            return True

    def _whole(self, reply: Reply) -> None:
        for token in reply.job.tokens(self._gone):
            reply.feed(token)
        self._send(200, reply.whole())

    def _stream(self, reply: Reply) -> None:
        self._headers(200, "text/event-stream", None)
        try:
            if reply.chat:
                for index in range(len(reply.choices)):
                    self.wfile.write(event(reply.first_chunk(index)))
            for token in reply.job.tokens(self._gone):
                if (chunk := reply.feed(token)) is not None:
                    self.wfile.write(event(chunk))
            if reply.job.request.stream_options.include_usage:
                self.wfile.write(event(reply.usage_chunk()))
        except OSError:
            raise
        except Exception as error:  # the status was sent already: the client finds the error in the stream
            self.server.report(f"{self.path}: {error}")
            self.wfile.write(event((error if isinstance(error, ApiError) else failed(error)).body()))
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, status: int, body: dict[str, Any], retry: int = 0) -> None:
        raw = json.dumps(body).encode()
        self._headers(status, "application/json", len(raw), retry)
        self.wfile.write(raw)

    def _headers(self, status: int, kind: str, size: int | None, retry: int = 0) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if retry:
            self.send_header("Retry-After", str(retry))
        if size is not None:
            self.send_header("Content-Length", str(size))
        self.send_header("Cache-Control", "no-cache")
        # Without a key every page in a browser could ask; then only pages of this machine may.
        origin = self.headers.get("Origin", "") if hasattr(self, "headers") else ""
        if origin and (self.server.key or _is_local(origin)):
            self.send_header("Access-Control-Allow-Origin", origin.splitlines()[0])
            self.send_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
            self.send_header("Access-Control-Allow-Headers", "*, Authorization")
            self.send_header("Vary", "Origin")
        self.end_headers()

    def fail(self, error: ApiError) -> None:
        """Answer with an error."""
        with suppress(OSError):
            self._send(error.status, error.body(), error.retry)
            # Closing with unread bytes would reset the connection, and the client would not see the error.
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(DRAIN_SECONDS)
            end = time.monotonic() + DRAIN_SECONDS
            while time.monotonic() < end and self.connection.recv(1 << 16):
                pass


def _is_local(origin: str) -> bool:
    try:
        return urlsplit(origin).hostname in ("localhost", "127.0.0.1", "::1")
    except ValueError:
        return False
