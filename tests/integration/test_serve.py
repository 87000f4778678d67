"""`sdpo serve`: every request is answered in OpenAI's form, whatever it holds, and none holds up the next."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

server = pytest.importorskip("sdpo_mlx.backends.mlx.server")

from sdpo_mlx.backends.registry import open_policy  # noqa: E402
from sdpo_mlx.backends.serving import http, replies, requests  # noqa: E402
from sdpo_mlx.config import AdapterConfig, ModelConfig, TeacherConfig, TrainConfig  # noqa: E402
from sdpo_mlx.models.resolve import resolve  # noqa: E402
from sdpo_mlx.runs.folder import RunFolder  # noqa: E402

MESSAGES = [{"role": "user", "content": "Write f(x): square"}]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ANSWER_SECONDS = 30


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A server of the embedded model and an adapter that changes it."""
    path = resolve("tiny").path
    home = tmp_path_factory.mktemp("serve") / "first"
    policy = open_policy(path, ModelConfig(adapter=AdapterConfig(rank=2)), TeacherConfig(), TrainConfig())
    noise = np.random.default_rng(0)
    student = {name: noise.normal(size=a.shape).astype(a.dtype) for name, a in policy.state()["student"].items()}
    home.mkdir()
    RunFolder(home).save_adapter(student, policy.adapter_config())
    service = server.MLXService(server.Served(path, ModelConfig(name="tiny"), "tiny", home, "first"))
    service.engine.start()
    with http.Server("127.0.0.1", 0, service, "", lambda line: None) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening.server_address[:2]
        listening.shutdown()
    service.engine.stop()


def asked(address: tuple[str, int], path: str, body: Any, method: str = "POST") -> tuple[int, Any]:
    """Return the status and the JSON of an answer; a stream as the list of its events."""
    connection = HTTPConnection(*address, timeout=ANSWER_SECONDS)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, path, raw, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.headers["Content-Type"] == "text/event-stream":
        lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        assert lines.pop() == "[DONE]"
        return answer.status, [json.loads(line) for line in lines]
    return answer.status, json.loads(text)


def text_of(answer: Any) -> list[str]:
    return [choice["message"]["content"] for choice in answer["choices"]]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
CONTENTS = st.text(max_size=30) | st.lists(
    st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"])}, optional={"text": st.text(max_size=9)}),
    max_size=2,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"])},
    optional={"content": CONTENTS, "tool_calls": ANYTHING, "name": ANYTHING},
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "messages": st.lists(MESSAGE, max_size=4) | st.just([{"role": "user", "content": "word " * 3_000}]),
    "prompt": st.text(max_size=30),
    "max_tokens": st.integers(1, 6),
    "max_completion_tokens": st.integers(-1, 6),
    "temperature": st.floats(0, 3),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 10**9),
    "min_p": st.floats(0, 1),
    "presence_penalty": st.floats(-3, 3),
    "frequency_penalty": st.floats(-3, 3),
    "repetition_penalty": st.floats(0, 3),
    "logit_bias": st.dictionaries(st.integers(-1, 700).map(str), st.floats(-100, 100), max_size=3),
    "seed": st.integers(-(2**64), 2**64),
    "stop": st.text(max_size=3) | st.lists(st.text(max_size=3), max_size=5),
    "n": st.integers(0, 3),
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "logprobs": st.booleans() | st.integers(0, 5),
    "top_logprobs": st.integers(-1, 21),
    "response_format": st.sampled_from(
        [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": 5}}}]
    ),
    "tools": st.just([{"type": "function", "function": {"name": "f"}}]),
    "model": st.sampled_from(["first", "tiny", "other"]),
    "user": st.text(max_size=3),
    "chat_template_kwargs": st.just({"enable_thinking": True}),
}
BODY = st.fixed_dictionaries({}, optional={name: ANYTHING | each | each | each for name, each in FIELDS.items()})


def check_any_request(address: tuple[str, int], path: str, changes: dict[str, Any]) -> None:
    status, answer = asked(address, path, {"messages": MESSAGES, "max_tokens": 3} | changes)
    if status == 200:
        assert all("error" not in each for each in (answer if isinstance(answer, list) else [answer]))
        return
    assert status in (400, 404)  # 404: no such model, as with OpenAI
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["message"]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from([CHAT, CHAT, TEXT]), changes=BODY)
def test_every_request_is_answered(address: tuple[str, int], path: str, changes: dict[str, Any]) -> None:
    check_any_request(address, path, changes)


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from([CHAT, CHAT, TEXT]), changes=BODY)
def test_two_thousand_requests_are_answered(address: tuple[str, int], path: str, changes: dict[str, Any]) -> None:
    check_any_request(address, path, changes)


@pytest.mark.parametrize(
    ("raw", "status"),
    [(b"", 400), (b"[1", 400), (b"\xff", 400), (b"[" * 50_000, 400), (b"x" * (http.MAX_BODY + 1), 413)],
)
def test_a_body_that_is_no_request_is_refused(address: tuple[str, int], raw: bytes, status: int) -> None:
    found, answer = asked(address, CHAT, raw)
    assert (found, answer["error"]["type"]) == (status, "invalid_request_error")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("stop", 5, "stop"),
        ("messages", [], "messages"),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "image_url"),
        ("messages", [{"role": "user", "content": "word " * 2_000}], "context"),
        ("audio", {}, "not supported"),
        ("tool_choice", "required", "tool_choice"),
        ("tools", [{"type": "function", "function": {"name": "f"}}], "does not support tools"),
    ],
)
def test_what_is_not_supported_is_named(address: tuple[str, int], field: str, value: Any, said: str) -> None:
    status, answer = asked(address, CHAT, {"messages": MESSAGES, field: value})
    assert status == 400
    assert said in answer["error"]["message"]


def test_both_models_are_listed_and_answer_differently(address: tuple[str, int]) -> None:
    assert [each["id"] for each in asked(address, "/v1/models", b"", "GET")[1]["data"]] == ["first", "tiny"]
    body = {"messages": MESSAGES, "max_tokens": 12}
    texts = {name: text_of(asked(address, CHAT, body | {"model": name})[1]) for name in ("first", "tiny")}
    assert texts["first"] != texts["tiny"]
    assert text_of(asked(address, CHAT, body)[1]) == texts["first"]
    status, answer = asked(address, CHAT, body | {"model": "other"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


def test_choices_differ_and_repeat_with_their_seed(address: tuple[str, int]) -> None:
    body = {"messages": MESSAGES, "model": "tiny", "n": 4, "temperature": 3.0, "seed": 7, "max_tokens": 12}
    first, again = (text_of(asked(address, CHAT, body)[1]) for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


def test_json_mode_writes_json_of_the_schema(address: tuple[str, int]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema | {"additionalProperties": False}}}
    body = {"messages": MESSAGES, "temperature": 2.0, "seed": 1, "max_tokens": 60, "response_format": wanted}
    answer = asked(address, CHAT, body)[1]
    assert set(json.loads(text_of(answer)[0])) == {"a"}
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_logprobs_have_the_text_of_their_tokens(address: tuple[str, int]) -> None:
    body = {"messages": MESSAGES, "model": "tiny", "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    choice = asked(address, CHAT, body)[1]["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(each["token"] for each in tokens) == choice["message"]["content"]
    for each in tokens:
        assert bytes(each["bytes"]).decode() == each["token"]
        assert each["top_logprobs"][0]["logprob"] == each["logprob"] <= 0  # greedy
        assert len(each["top_logprobs"]) == 3
    answer = asked(address, TEXT, {"prompt": "square", "model": "tiny", "max_tokens": 5, "logprobs": 2})[1]
    assert "".join(answer["choices"][0]["logprobs"]["tokens"]) == answer["choices"][0]["text"]


def test_a_stream_has_the_text_of_the_whole_reply(address: tuple[str, int]) -> None:
    body = {"messages": MESSAGES, "model": "tiny", "max_tokens": 12}
    whole = asked(address, CHAT, body)[1]
    chunks = asked(address, CHAT, body | {"stream": True, "stream_options": {"include_usage": True}})[1]
    assert chunks[-1]["usage"] == whole["usage"]
    assert "".join(each["choices"][0]["delta"].get("content", "") for each in chunks[:-1]) == text_of(whole)[0]
    stop = text_of(whole)[0][2:5]
    assert text_of(asked(address, CHAT, body | {"stop": [stop]})[1]) == [text_of(whole)[0].partition(stop)[0]]


def test_a_short_request_passes_a_long_one(address: tuple[str, int]) -> None:
    # A bias of 100 makes one token follow another until the context is full.
    endless = {"messages": MESSAGES, "max_tokens": 300, "logit_bias": {"100": 100}, "seed": 3, "temperature": 1}
    done: list[float] = []
    long = threading.Thread(target=lambda: done.append(asked(address, CHAT, endless) and time.monotonic()))
    long.start()
    for name in ("first", "tiny"):
        assert asked(address, CHAT, {"messages": MESSAGES, "model": name, "max_tokens": 2, "seed": 1})[0] == 200
    assert not done
    long.join(ANSWER_SECONDS)
    assert done


def test_a_client_that_leaves_ends_its_request(address: tuple[str, int]) -> None:
    body = json.dumps({"messages": MESSAGES, "max_tokens": 900, "logit_bias": {"100": 100}, "n": 16}).encode()
    for _ in range(3):
        client = socket.create_connection(address)
        client.sendall(b"POST %b HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body)) + body)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    began = time.monotonic()
    assert asked(address, CHAT, {"messages": MESSAGES, "max_tokens": 40, "logit_bias": {"100": 100}})[0] == 200
    assert time.monotonic() - began < 6  # 10 s with the rows of those who left


def test_a_key_is_needed_if_the_server_has_one(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    with http.Server("127.0.0.1", 0, None, "secret", lambda line: None) as guarded:  # type: ignore[arg-type]
        threading.Thread(target=guarded.serve_forever, daemon=True).start()
        status, answer = asked(guarded.server_address[:2], CHAT, {"messages": MESSAGES})
        guarded.shutdown()
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")


class Busy:
    """A service that answers nothing until it is told to."""

    names = ("busy",)

    def __init__(self) -> None:
        self.begun, self.free = threading.Semaphore(0), threading.Event()

    def begin(self, request: requests.Request) -> replies.Reply:
        self.begun.release()
        assert self.free.wait(ANSWER_SECONDS)
        raise requests.ApiError(400, "it is done")


def test_too_many_requests_are_refused_with_a_time_to_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_REQUESTS", 2)
    busy, said, statuses = Busy(), list[str](), list[int]()
    with http.Server("127.0.0.1", 0, busy, "", said.append) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        address = listening.server_address[:2]
        body = {"messages": MESSAGES}
        waiting = [threading.Thread(target=lambda: statuses.append(asked(address, CHAT, body)[0])) for _ in range(2)]
        for each in waiting:
            each.start()
            assert busy.begun.acquire(timeout=ANSWER_SECONDS)
        connection = HTTPConnection(*address, timeout=ANSWER_SECONDS)
        connection.request("POST", CHAT, json.dumps(body))
        refused = connection.getresponse()
        error = json.loads(refused.read())["error"]
        assert asked(address, "/health", b"", "GET")[0] == 200
        busy.free.set()
        for each in waiting:
            each.join(ANSWER_SECONDS)
        assert asked(address, CHAT, body)[0] == 400  # there is a place again
        listening.shutdown()
    assert (refused.status, refused.headers["Retry-After"]) == (429, str(http.RETRY_SECONDS))
    assert (error["type"], error["code"]) == ("rate_limit_error", "too_many_requests")
    assert (statuses, said) == ([400, 400], [])


@given(st.lists(st.sampled_from(["\n", "User", ":", "\nUser:", "a", "", "Us", "\n\n", "b\nUser: c"]), max_size=9))
def test_replies_end_before_the_stop_text(pieces: list[str]) -> None:
    stopping, shown = replies.StopText(["\nUser:", ""]), ""
    whole = "".join(pieces).partition("\nUser:")
    for piece in pieces:
        shown += stopping.feed(piece)
        assert whole[0].startswith(shown)  # never shown before it is known if it belongs to the stop text
    assert stopping.ended == bool(whole[1])
    assert shown + ("" if stopping.ended else stopping.rest()) == whole[0]


def test_null_fields_have_their_defaults() -> None:
    raw = json.dumps({"messages": MESSAGES, "stop": None, "temperature": None, "n": None, "user": "me"}).encode()
    read = requests.parsed(requests.ChatRequest, raw)
    assert (read.stop, read.temperature, read.n) == ([], 0.0, 1)
