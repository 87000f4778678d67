"""How models write tool calls: one reader for each notation of current chat templates.

Special tokens are left out of decoded answers, so a notation is recognized with and without them. mlx-lm's
`tool_parsers` read the same notations, but only where mlx is installed, one call at a time, and without saying what is
wrong with a call that cannot be read.

| notation | models |
|---|---|
| `<tool_call>` with JSON, a list, XML, or `name<arg_key>..</arg_key><arg_value>..</arg_value>` | Qwen, Hermes, GLM |
| `<function=name><parameter=key>value</parameter></function>`, `<invoke name="name">` | Qwen3-Coder, Qwen3.5, MiniMax |
| `call:name{key:value}` with strings in `<escape>` or `<|"|>` | Gemma 4, FunctionGemma |
| `name[ARGS]{..}`, `to=functions.name ..{..}`, `functions.name:0{..}`, `name<｜tool▁sep｜>{..}` | Mistral, gpt-oss |
| `[name(key=value)]` | LFM2, Llama 4 |
| `{"name": .., "arguments" or "parameters": ..}`, lists of them, `{"tool_calls": [..]}` | Llama 3, Granite, Phi-4 |
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sdpo_mlx.core.markdown import without_fences
from sdpo_mlx.tasks.tools.values import Call, Schemas, call_from, checked, typed, value_at

Reader = Callable[[str, int, Schemas], Iterator[Call]]  # yields the calls of an answer from a place on

_N = r"[\w./-]+"
_TAGGED = re.compile(r"<(\w*tool_call)>(.*?)(?:</\1>|(?=<\1>)|\Z)", re.DOTALL)
_ARGUMENT = re.compile(r"<(\w*)arg_key>(.*?)</\1arg_key>\s*<\1arg_value>(.*?)(?:</\1arg_value>|\Z)", re.DOTALL)
_GLM = re.compile(rf"\s*({_N})\s*(?:<\w*arg_key>|\Z)")
_GLM_BARE = re.compile(rf"^[ \t]*({_N})\s*((?:<(\w*)arg_key>.*?</\3arg_value>\s*)+)", re.DOTALL | re.MULTILINE)
_FUNCTION = re.compile(
    rf"""<(?:\w+:)?(?:function|invoke)(?:=|\s+name=)["']?({_N})["']?\s*>(.*?)"""
    r"(?:</(?:\w+:)?(?:function|invoke)>|(?=<(?:\w+:)?(?:function|invoke)[=\s])|\Z)",
    re.DOTALL,
)
_PARAMETER = re.compile(
    r"""<(?:\w+:)?param(?:eter)?(?:=|\s+name=)["']?([^"'>]+?)["']?\s*>\n?(.*?)\n?"""
    r"(?:</(?:\w+:)?param(?:eter)?>|(?=<(?:\w+:)?param(?:eter)?[=\s])|\Z)",
    re.DOTALL,
)
_GEMMA = re.compile(rf"call:({_N})(?=\{{)")
_QUOTES = ('<|"|>', "<escape>", '"')
_BARE = re.compile(r"(?:[^,\]}]|,(?!\s*[\w-]+:))*")
_KEY = re.compile(r"\s*,?\s*[\"']?([\w.-]+)[\"']?\s*:\s*")
_HEADER = re.compile(
    rf"to=(?:functions\.)?({_N}?)(?:<\|channel\|>)?(?:commentary|analysis)?(?:[\s<][^{{\n]*)?(?=\{{)"  # gpt-oss
    rf"|(?<![\w./-])(?:functions\.)?({_N}):\d+\s*(?:<\|tool_call_argument_begin\|>)?\s*(?=\{{)"  # Kimi
    rf"|function<｜tool▁sep｜>({_N})\s*(?=\{{)|(?<![\w./-])({_N})<｜tool▁sep｜>\s*(?=\{{)"  # DeepSeek
    rf"|(?<![\w./-])({_N})(?:\[CALL_ID\]\w+)?\[ARGS\]\s*"  # Mistral
    rf"|(?:^|(?<=\}}))[ \t]*({_N})(?=\{{\s*[\"}}])",  # Mistral without its special tokens
    re.MULTILINE,
)
_PYTHONIC = re.compile(rf"^[ \t]*\[\s*(?={_N}\()", re.MULTILINE)
_BRACKET = re.compile(r"""\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|[\[({]|[\])}]""", re.DOTALL)
_LITERALS = {"true": True, "false": False, "null": None}
_CALL_TOKEN = re.compile(r"<\|/?\w*tool\w*\|>|<\|python_tag\|>|\[/?TOOL_CALLS\]")
_LINE = re.compile(r"^[ \t]*(?=\{|\[\s*\{)", re.MULTILINE)
_NEXT = re.compile(r"\s*[;,]?\s*(?=[{\[])")


def calls_in(answer: str, schemas: Schemas) -> Iterator[Call]:
    """Yield the calls of an answer in the notation of its first call; those in tags go before all others."""
    if tag := _TAGGED.search(answer):
        yield from _tagged(answer, tag.start(), schemas)
        return
    text = without_fences(_CALL_TOKEN.sub("\n", answer))
    found = [(match.start(), i) for i, (mark, _) in enumerate(NOTATIONS) if (match := mark.search(text))]
    if found:
        start, which = min(found)
        yield from NOTATIONS[which][1](text, start, schemas)


def _tagged(text: str, start: int, schemas: Schemas) -> Iterator[Call]:
    for chunk in _TAGGED.finditer(text, start):
        inner = chunk[2]
        if _FUNCTION.search(inner):
            yield from _xml(inner, 0, schemas)
        elif name := _GLM.match(inner):
            yield _glm_call(name[1], inner, schemas)
        else:
            yield from _calls_at(inner, 0)[0]


def _xml(text: str, start: int, schemas: Schemas) -> Iterator[Call]:
    for call in _FUNCTION.finditer(text, start):
        yield _typed_call(call[1], _PARAMETER.findall(call[2]), schemas)


def _glm(text: str, start: int, schemas: Schemas) -> Iterator[Call]:
    for call in _GLM_BARE.finditer(text, start):
        yield _glm_call(call[1], call[2], schemas)


def _glm_call(name: str, text: str, schemas: Schemas) -> Call:
    return _typed_call(name, [(key.strip(), value.strip()) for _, key, value in _ARGUMENT.findall(text)], schemas)


def _typed_call(name: str, pairs: list[tuple[str, str]], schemas: Schemas) -> Call:
    properties = schemas.get(name, {}).get("properties", {})
    arguments = {key: typed(value, properties.get(key)) for key, value in pairs}
    twice = "" if len(arguments) == len(pairs) else "an argument stands twice"
    return checked(name, arguments, twice)


def _gemma(text: str, start: int, schemas: Schemas) -> Iterator[Call]:
    for call in _GEMMA.finditer(text, start):
        schema = {"type": "object", **schemas.get(call[1], {})}
        try:
            value, _ = _loose(text, call.end(), schema)
        except (ValueError, RecursionError):
            yield Call(call[1], fault="its arguments are malformed")
        else:
            yield checked(call[1], value, "")


def _loose(text: str, at: int, schema: Mapping[str, Any] | None) -> tuple[Any, int]:
    """Return a value with unquoted keys and its end; raises ValueError if it has none."""
    schema = schema or {}
    at += len(text[at:]) - len(text[at:].lstrip()) if text[at : at + 1].isspace() else 0
    for quote in _QUOTES:
        if text.startswith(quote, at):
            end = text.index(quote, at + len(quote))
            return text[at + len(quote) : end], end + len(quote)
    if text.startswith("[", at):
        items: list[Any] = []
        at += 1
        while not text.startswith("]", at):
            item, at = _loose(text, at, schema.get("items"))
            items.append(item)
            at = at + 1 if text.startswith(",", at) else text.index("]", at, at + 1)
        return items, at + 1
    if text.startswith("{", at):
        fields: dict[str, Any] = {}
        at += 1
        while not text[at : at + 2].lstrip().startswith("}"):
            key = _KEY.match(text, at)
            if key is None or key[1] in fields:
                raise ValueError("a key is missing, or stands twice")
            fields[key[1]], at = _loose(text, key.end(), schema.get("properties", {}).get(key[1]))
        return fields, text.index("}", at) + 1
    bare = _BARE.match(text, at)
    assert bare is not None
    return typed(bare[0].strip(), schema), bare.end()


def _named(text: str, start: int, _schemas: Schemas) -> Iterator[Call]:
    """Yield calls whose arguments are JSON after a name; a name inside the arguments of another is none."""
    while header := _HEADER.search(text, start):
        value, fault, start = value_at(text, header.end())
        yield checked(next(filter(None, header.groups())), value, fault)


def _pythonic(text: str, start: int, _schemas: Schemas) -> Iterator[Call]:
    while opening := _PYTHONIC.search(text, start):
        begin = text.index("[", opening.start())
        start = _closing(text, begin)
        try:
            parsed = ast.parse(text[begin:start], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            yield Call("", fault="its list of calls is malformed")
        else:
            yield from map(_python_call, parsed.elts if isinstance(parsed, ast.List) else [parsed])


def _closing(text: str, begin: int) -> int:
    """Return where the bracket at `begin` is closed, or the end of the text."""
    depth = 0
    for found in _BRACKET.finditer(text, begin):
        depth += 1 if found[0] in "[({" else -1 if found[0] in "])}" else 0
        if depth == 0:
            return found.end()
    return len(text)


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        return Call("", fault="it is no call with named arguments")
    name = ast.unparse(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        return Call(name, fault="its arguments have no names")
    try:
        return checked(name, {str(word.arg): _constant(word.value) for word in node.keywords}, "")
    except (ValueError, TypeError, RecursionError):
        return Call(name, fault="its arguments are no constants")


def _constant(node: ast.expr) -> Any:
    """Return a Python or JSON constant; sets, bytes and complex numbers are none."""
    if isinstance(node, ast.Name) and node.id in _LITERALS:
        return _LITERALS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_constant(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_constant(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_constant, node.values), strict=True))
    value = ast.literal_eval(node)
    if not isinstance(value, str | int | float | None):
        raise ValueError("no constant of JSON")
    return value


def _json(text: str, start: int, _schemas: Schemas) -> Iterator[Call]:
    """Yield the calls of JSON values that open a line; alone, in a list, or in a row."""
    while line := _LINE.search(text, start):
        calls, start = _calls_at(text, line.end())
        yield from calls


def _calls_at(text: str, start: int) -> tuple[list[Call], int]:
    """Return the calls of the JSON values in a row from `start`, and where they end."""
    calls: list[Call] = []
    while True:
        value, fault, position = value_at(text, start)
        if fault:
            return [*calls, Call("", fault=fault)], position
        inner = value["tool_calls"] if isinstance(value, dict) and "tool_calls" in value else value
        calls += map(call_from, inner if isinstance(inner, list) else [] if inner is None else [inner])
        more = _NEXT.match(text, position)
        if more is None:
            return calls, position
        start = more.end()


NOTATIONS: tuple[tuple[re.Pattern[str], Reader], ...] = (
    (_FUNCTION, _xml),
    (_GLM_BARE, _glm),
    (_GEMMA, _gemma),
    (_HEADER, _named),
    (_PYTHONIC, _pythonic),
    (_LINE, _json),
)
