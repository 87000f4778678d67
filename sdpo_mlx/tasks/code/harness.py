"""Runs an answer on inputs inside the sandbox and sends back what it gave; knows no expected value.

This file travels as text and stands alone: standard library only, nothing of ours. The answer may take
it apart while it runs; that gains nothing, because whatever comes back is compared outside.
The one weaker kind is `code`, whose assertions have to run here.

Plain values cross the border as JSON: None, bool, int, float, str, list and dict with text keys as they
are; `{"$tuple": [...]}`, `{"$set": [...]}`, `{"$frozenset": [...]}`, `{"$dict": [[key, value], ...]}` and
`{"$float": "nan" | "inf" | "-inf"}` and `{"$int": "-0x1f"}` (too long for decimal digits) for the rest.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pathlib
import resource
import signal
import sys
import time
import types
from collections.abc import Callable

TYPE_CHECKING = False  # as in `typing`, whose import costs a tenth of a start
if TYPE_CHECKING:
    from typing import Any

ANSWER = "<answer>"
MAX_DEPTH = 60
PRINTED_CAP = 500  # bytes kept of what an answer prints
_DECIMAL_BITS = 4_000  # integers above this cross as hexadecimal: Python refuses decimal above 4,300 digits
_BOXES: dict[str, Callable[[list[Any]], Any]] = {"$tuple": tuple, "$set": set, "$frozenset": frozenset}
_NUMBERS: dict[str, Callable[[str], Any]] = {
    "$float": {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}.__getitem__,
    "$int": lambda text: int(text, 16),
}


class NotPlainError(Exception):
    """A value that has no faithful JSON form; the text says why."""


def encode(value: Any, depth: int = 0) -> Any:
    """Return the JSON form of a plain value, judged by its exact type; raises NotPlainError."""
    kind = type(value)
    if depth > MAX_DEPTH:
        raise NotPlainError(f"a value nested more than {MAX_DEPTH} deep")
    if value is None or kind in (bool, str):
        return value
    if kind is int:
        return value if value.bit_length() <= _DECIMAL_BITS else {"$int": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"$float": repr(value)}
    if kind is list:
        return [encode(item, depth + 1) for item in value]
    for tag, box in _BOXES.items():
        if kind is box:
            return {tag: [encode(item, depth + 1) for item in value]}
    if kind is dict:
        pairs = [[encode(key, depth + 1), encode(item, depth + 1)] for key, item in value.items()]
        plain = all(type(key) is str and not key.startswith("$") for key in value)
        return dict(pairs) if plain else {"$dict": pairs}
    raise NotPlainError(f"a value of the type {kind.__name__}")


def decode(data: Any, depth: int = 0) -> Any:
    """Return the value behind its JSON form; raises ValueError, TypeError or KeyError for what is none."""
    if depth > MAX_DEPTH + 1:
        raise ValueError("nested too deeply")
    if type(data) is list:
        return [decode(item, depth + 1) for item in data]
    if type(data) is not dict:
        return data
    tag = next(iter(data)) if len(data) == 1 else ""
    if tag in _BOXES:
        return _BOXES[tag]([decode(item, depth + 1) for item in data[tag]])
    if tag in _NUMBERS:
        return _NUMBERS[tag](data[tag])
    if tag == "$dict":
        return {decode(key, depth + 1): decode(item, depth + 1) for key, item in data[tag]}
    return {key: decode(item, depth + 1) for key, item in data.items()}


class _Printed(io.RawIOBase):
    """Stands for stdout or stderr: keeps the beginning, counts as written what comes later."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.kept = bytearray()

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        """Return the number itself, which leads nowhere."""
        return self._fd

    def write(self, data: Any) -> int:
        room = PRINTED_CAP - len(self.kept)
        if room > 0:
            self.kept += bytes(data[:room])
        return len(data)


def _catch_prints() -> Callable[[], str]:
    """Put fresh streams in place; the function that comes back says what was printed on them."""
    kept = (_Printed(1), _Printed(2))
    streams = [io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="replace") for raw in kept]
    sys.stdout, sys.stderr = streams

    def printed() -> str:
        for stream in streams:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        text = "".join(raw.kept.decode("utf-8", "replace") for raw in kept)
        return text.replace(str(pathlib.Path.cwd()), ".")[:PRINTED_CAP]

    return printed


def _codes(job: dict[str, Any]) -> list[types.CodeType]:
    """Return preamble, answer and setup; nothing of this file's `__future__` imports holds for them."""
    parts = ((job["preamble"], "<preamble>"), (job["code"], ANSWER), (job["setup"], "<setup>"))
    return [compile(text, name, "exec", dont_inherit=True) for text, name in parts]


def _module(name: str, codes: list[types.CodeType]) -> types.ModuleType:
    """Return a fresh module that has run these programs; dataclasses look their module up by name."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    for code in codes:
        exec(code, module.__dict__)
    return module


def _run_functional(job: dict[str, Any], test: dict[str, Any], module: types.ModuleType) -> dict[str, Any]:
    """Call the entry, or the method of that name of a class `Solution`."""
    entry = job["entry"]
    function = getattr(module, entry, None)
    if function is None and hasattr(module, "Solution"):
        function = getattr(module.Solution(), entry, None)
    if function is None:
        defined = [name for name, value in vars(module).items() if isinstance(value, types.FunctionType)]
        own = [name for name in defined if vars(module)[name].__code__.co_filename == ANSWER][:5]
        hint = f"; it defines {', '.join(own)}" if own else ""
        raise NameError(f"the answer defines no function named {entry}{hint}")
    arguments = [decode(argument) for argument in test["args"]]
    before = [_encoded(argument) for argument in arguments]
    result = function(*arguments)
    changed = [n for n, argument in enumerate(arguments) if _encoded(argument) != before[n]]
    try:
        return {"value": encode(_seen(result, test.get("equality"))), "changed": changed}
    except NotPlainError as error:
        return {"odd": str(error)}


def _encoded(argument: Any) -> Any:
    """Return the form by which a changed argument is noticed."""
    try:
        return encode(argument)
    except NotPlainError:
        return None


def _seen(result: Any, equality: str | None) -> Any:
    """Return the part of a result that a comparison looks at: its truth, its items, or all of it."""
    if equality == "truth":
        return bool(result)
    if equality in ("set", "sorted", "items"):
        return [_plain(item) for item in result]
    return _plain(result) if equality else result


def _plain(value: Any, depth: int = 0) -> Any:
    """The built-in value inside instances of subclasses (Counter, namedtuple, IntEnum), which equal it in Python."""
    kind = type(value)
    if kind in (bool, int, float, str) or value is None or depth > MAX_DEPTH:
        return value
    for base, reader in ((int, int.__int__), (float, float.__float__), (str, str.__str__)):
        if issubclass(kind, base):
            return reader(value)
    for box in (list, tuple, set, frozenset):
        if issubclass(kind, box):
            return box(_plain(item, depth + 1) for item in box.__iter__(value))
    if issubclass(kind, dict):
        return {_plain(key, depth + 1): _plain(item, depth + 1) for key, item in dict.items(value)}
    return value


def _run_stdin(codes: list[types.CodeType], test: dict[str, Any], cap: int) -> dict[str, Any]:
    """Run the answer as a program, with real files on fd 0 and 1, so that every way of reading works."""
    for name, text, fd in (("input", test["input"], 0), ("output", "", 1)):
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(handle, text.encode("utf-8", "replace"))
        os.lseek(handle, 0, os.SEEK_SET)
        if handle != fd:  # an earlier run may have closed the number itself
            os.dup2(handle, fd)
            os.close(handle)
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    try:
        _module("__main__", codes)
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
    with pathlib.Path("output").open("rb") as written:
        data = written.read(cap + 1)
    return {"odd": "too much output"} if len(data) > cap else {"output": data.decode("utf-8", "replace")}


def _describe(error: BaseException, source: list[str]) -> dict[str, Any]:
    """Type, message and the lines of the answer's own code that it went through; no frame of ours."""
    if isinstance(error, SyntaxError) and error.filename == ANSWER:
        places = [(error.lineno or 1, "")]
        message = str(error.msg)
    else:
        places, trace = [], error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == ANSWER:
                places.append((trace.tb_lineno, trace.tb_frame.f_code.co_name))
            trace = trace.tb_next
        message = str(error)
        if not places and type(error) is TypeError:
            name = message.partition("(")[0].rpartition(".")[2]  # of the function whose call did not fit it
            places = [(n, name) for n, line in enumerate(source, 1) if line.strip().startswith(f"def {name}(")][:1]
    shown = places if len(places) <= 4 else [*places[:1], *places[-3:]]
    lines = [[n, name, source[n - 1].strip()[:200] if 0 < n <= len(source) else ""] for n, name in shown]
    message = message.replace(str(pathlib.Path.cwd()), ".")[:500]
    return {"error": {"type": type(error).__name__[:100], "message": message, "lines": lines}}


def _safely(action: Callable[[], dict[str, Any]], source: list[str]) -> dict[str, Any]:
    """Return the action's result, or a description of whatever it raised."""
    try:
        return action()
    except BaseException as error:
        try:
            return _describe(error, source)
        except BaseException:
            return {"error": {"type": "Error", "message": "an error that cannot be shown", "lines": []}}


def _limit_processor(seconds: float) -> None:
    """Let the kernel end this process after these seconds of processor time, rounded, from now on."""
    most = max(1, int(time.process_time() + seconds + 0.5))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))


def _limit_test(seconds: float, wait: float) -> None:
    """Let a signal end this process when the next test has used this processor time, rounded up, or `wait` seconds."""
    most = math.ceil(time.process_time() + seconds)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, wait)


def _on_large_stack(action: Callable[[], None], size: int) -> None:
    """Run an action in a thread with a stack of so many bytes, so that deep recursion does not crash the process."""
    import threading  # not for every start

    try:
        threading.stack_size(size)
        thread = threading.Thread(target=action)
        thread.start()
    except (ValueError, RuntimeError):  # not that much memory
        threading.stack_size(0)
        action()
    else:
        threading.stack_size(0)
        thread.join()


def main() -> None:
    """Read the job, say that it arrived, run its tests in order, one result line each."""
    job = json.loads(sys.stdin.buffer.read())
    if job["seconds"] is not None:
        _limit_processor(job["seconds"])
    if job.get("test_seconds") is not None and os.getpid() == 1:  # which no signal ends unless it is handled
        for number in (signal.SIGXCPU, signal.SIGALRM):
            signal.signal(number, lambda number, _: os._exit(128 + number))
    channel = os.dup(1)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 2)  # what is printed is kept by `_catch_prints`, and a flood of it ends nothing
    if job.get("stack"):
        _on_large_stack(lambda: _run_all(job, channel, quiet), job["stack"])
    else:
        _run_all(job, channel, quiet)
    os._exit(0)  # neither exit handlers nor threads of the answer get another turn


def _run_all(job: dict[str, Any], channel: int, quiet: int) -> None:
    nonce, cap = job["nonce"], job["cap"]
    source = job["code"].splitlines()
    state: dict[str, Any] = {}

    def send(record: dict[str, Any]) -> None:
        data = json.dumps({"nonce": nonce, **record}).encode()
        if len(data) > cap and record.pop("printed", None):
            data = json.dumps({"nonce": nonce, **record}).encode()
        if len(data) > cap:
            data = json.dumps({"nonce": nonce, "test": record["test"], "odd": "too large a value"}).encode()
        os.write(channel, data + b"\n")

    def run(test: dict[str, Any]) -> dict[str, Any]:
        if "codes" not in state:
            state["codes"] = _codes(job)
        if test["kind"] == "stdin":
            return _run_stdin(state["codes"], test, cap // 2)
        os.dup2(quiet, 0)
        os.dup2(quiet, 1)
        if test["kind"] == "code":
            code = compile(test["code"], "<test>", "exec", dont_inherit=True)
            exec(code, _module("answer", state["codes"]).__dict__)
            return {"passed": True}
        if "module" not in state:
            state["module"] = _module("answer", state["codes"])
        return _run_functional(job, test, state["module"])

    send({"ready": True, "test": -1})
    clock = time.perf_counter
    for index, test in enumerate(job["tests"]):
        if job.get("test_seconds") is not None:
            _limit_test(job["test_seconds"], job["test_wait"])
        start = clock()
        printed = _catch_prints()
        result = _safely(lambda test=test: run(test), source)  # type: ignore[misc]
        said = ""  # what a program had printed when it failed
        if "error" in result and test["kind"] == "stdin" and pathlib.Path("output").exists():
            with pathlib.Path("output").open("rb") as written:
                said = written.read(PRINTED_CAP).decode("utf-8", "replace")
        send({"test": index, "seconds": clock() - start, **result, "printed": (said + printed())[:PRINTED_CAP]})


if __name__ == "__main__":
    main()
