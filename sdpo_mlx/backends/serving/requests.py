"""What a request may say: checked here in full, so that nothing unexpected reaches the model's thread."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import PydanticCustomError

MAX_CHOICES = 16  # `n`; half of the rows that are decoded together
NO_TOP_LOGPROBS = -1  # mlx-lm's value for none

# Accepted without an effect: they concern accounts and billing, or change nothing here.
IGNORED = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"}
    | {"service_tier", "store", "user"}
)


class ApiError(Exception):
    """A request that is answered with an error in OpenAI's form; clients try again after `retry` seconds if not 0."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None, *, retry: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry = status, param, code, retry

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, "invalid_request_error")
        if self.status >= 500:
            kind = "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class TextPart(_Part):
    """A part of a content; images and audio are not supported."""

    type: Literal["text"]
    text: str


def _joined(content: Any) -> Any:
    """Return a content of text parts as one text."""
    if not isinstance(content, list):
        return "" if content is None else content
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise PydanticCustomError(
                "content", "content of type {kind} is not supported, only text", {"kind": kind[:40]}
            )
    return "".join(TextPart.model_validate(part).text for part in content)


class Function(_Part):
    """The function that an earlier tool call named."""

    name: str
    arguments: Any = None

    @model_validator(mode="after")
    def _parsed(self) -> Function:
        if isinstance(self.arguments, str):
            try:
                self.arguments = json.loads(self.arguments or "{}")
            except (ValueError, RecursionError):
                raise PydanticCustomError("arguments", "arguments must be JSON") from None
        return self


class ToolCall(_Part):
    """A tool call of an earlier reply."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    type: Literal["function"] = "function"
    function: Function


class ChatMessage(_Part):
    """One message; fields of other roles are ignored."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_joined)] = ""
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None

    def as_template(self) -> dict[str, Any]:
        """Return the message for a chat template."""
        given = self.model_dump(exclude_none=True)
        return given | {"role": "system" if self.role == "developer" else self.role}


class StreamOptions(_Part):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(_Part):
    """`response_format.json_schema`."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(default_factory=dict, alias="schema")
    strict: bool | None = None


class ResponseFormat(_Part):
    """`response_format`: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def schema_text(self) -> str | None:
        """Return the JSON schema that the reply must have, None for free text."""
        if self.type == "text":
            return None
        if self.type == "json_schema" and self.json_schema is None:
            raise ApiError(400, "response_format.json_schema is missing", "response_format")
        schema = self.json_schema.schema_ if self.type == "json_schema" and self.json_schema else {"type": "object"}
        return json.dumps(schema)


class TemplateOptions(_Part):
    """`chat_template_kwargs`."""

    enable_thinking: bool | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else [] if value is None else value


StopTexts = Annotated[
    list[Annotated[str, StringConstraints(min_length=1, max_length=1_000)]],
    BeforeValidator(_listed),
    Field(max_length=16),
]


class _Request(_Part):
    """What both kinds of requests have. Fields with null have their default, as with OpenAI."""

    model: str = ""
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(0.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict, max_length=1_024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopTexts = []
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="before")
    @classmethod
    def _given(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        return {name: value for name, value in body.items() if value is not None and name not in IGNORED}

    @property
    def bias(self) -> dict[int, float]:
        """The logit bias by token id."""
        try:
            return {int(name): value for name, value in self.logit_bias.items()}
        except ValueError:
            raise ApiError(400, "logit_bias: its keys must be token ids", "logit_bias") from None


class ChatRequest(_Request):
    """The body of `/v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=NO_TOP_LOGPROBS, le=20)
    response_format: ResponseFormat = ResponseFormat(type="text")
    tools: list[dict[str, Any]] = Field(default_factory=list, max_length=256)
    tool_choice: Literal["none", "auto"] = "auto"
    chat_template_kwargs: TemplateOptions = TemplateOptions()

    @property
    def limit(self) -> int | None:
        """The asked number of tokens."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives of each token are listed; None for no log-probabilities."""
        return max(self.top_logprobs, 0) if self.logprobs or self.top_logprobs > 0 else None


class CompletionRequest(_Request):
    """The body of `/v1/completions`."""

    prompt: Annotated[str, Field(min_length=1)]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] = False
    best_of: Literal[1] = 1

    @property
    def limit(self) -> int | None:
        """The asked number of tokens."""
        return self.max_tokens

    @property
    def alternatives(self) -> int | None:
        """How many alternatives of each token are listed; None for no log-probabilities."""
        return self.logprobs


Request = ChatRequest | CompletionRequest
T = TypeVar("T", bound=_Request)


def parsed(kind: type[T], raw: bytes) -> T:
    """Return the request of a body; raise ApiError 400 that names the field."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        what = "not supported by this server" if first["type"] == "extra_forbidden" else first["msg"]
        raise ApiError(400, f"{where or 'body'}: {what}"[:500], where[:200] or None) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
