"""Runs an answer's tests in the sandbox and compares what comes back, outside of it."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

from sdpo_mlx.core.errors import SandboxError
from sdpo_mlx.sandbox.base import RunResult, Sandbox
from sdpo_mlx.sandbox.launch import Limits
from sdpo_mlx.sandbox.probe import ending
from sdpo_mlx.tasks.code.compare import same, same_output, show
from sdpo_mlx.tasks.code.diff import output_difference, value_difference
from sdpo_mlx.tasks.code.formats.native import RESULTS_CAP
from sdpo_mlx.tasks.code.harness import decode

Test = Mapping[str, Any]
_SENT = ("kind", "args", "input", "code", "equality")  # what the sandbox learns of a test: nothing expected
# The clock on the wall runs on while neighbours hold the processor, so an answer is charged with processor time,
# which no load changes, and the wall clock is only the net for those that sleep.
_PATIENCE = 3.0
_HARNESS = resources.files("sdpo_mlx.tasks.code").joinpath("harness.py").read_text("utf-8")
_OUT_OF_TIME = (-24, 128 + 24, -14, 128 + 14)  # SIGXCPU, SIGALRM
_STACK_SHARE, _LARGEST_STACK = 8, 256 << 20  # of the memory that a row brings; 50,000 calls through C need some 100 MB
_KILLED = (-9, 128 + 9)  # what the first process of a container gets instead
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{4,}")
_UNREADABLE = (KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError)


class GraderFailureError(SandboxError):
    """The sandbox did not start the harness: a fault of this machine, never the answer's."""


@dataclass(frozen=True)
class Failure:
    """An exception of the answer: type, message, and (line, function, source) inside its own code."""

    type: str
    message: str
    lines: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True)
class TestOutcome:
    """The result of one test; all fields except `verdict` contain untrusted text.

    `difference` (where got and expected part) and `changed` (arguments, counted from 1) belong to wrong values,
    `printed` to functional tests, and to programs that failed on the way.
    """

    verdict: Literal["pass", "wrong", "error", "timeout", "not_run"]
    output: str = ""
    failure: Failure | None = None
    difference: str = ""
    changed: tuple[int, ...] = ()
    printed: str = ""


@dataclass(frozen=True)
class Program:
    """An answer's program and what its problem adds to it.

    `preamble` runs before the answer in the same module, `setup` after it; neither is one of the answer's lines.
    With `test_seconds` each test has so much processor time; without, `sandbox.seconds` hold for all together.
    """

    code: str
    entry: str | None = None
    preamble: str = ""
    setup: str = ""
    test_seconds: float | None = None
    memory_mb: int | None = None


class Turnstile:
    """Lets many gradings run at once, or one alone: a timeout counts only if it happens without others."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0
        self._alone = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Enter beside others; wait while somebody is alone."""
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._inside += 1
        try:
            yield
        finally:
            with self._condition:
                self._inside -= 1
                self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Enter without others: wait until they have left, and let no new ones in."""
        with self._condition:
            self._condition.wait_for(lambda: not self._alone)
            self._alone = True
            self._condition.wait_for(lambda: self._inside == 0)
        try:
            yield
        finally:
            with self._condition:
                self._alone = False
                self._condition.notify_all()


def run_tests(
    sandbox: Sandbox, turnstile: Turnstile, program: Program, tests: Sequence[Test]
) -> tuple[TestOutcome, ...]:
    """Return outcomes of all tests of one answer, in order, from one sandbox start (two after a timeout).

    Raises GraderFailureError if the sandbox itself fails, twice.
    """
    outcomes: tuple[TestOutcome, ...] | None = None
    with turnstile.shared(), contextlib.suppress(GraderFailureError):
        outcomes = _run_once(sandbox, program, tests)
    if outcomes is None or any(outcome.verdict == "timeout" for outcome in outcomes):
        with turnstile.alone():
            outcomes = _run_once(sandbox, program, tests)
    return outcomes


def seconds_of(limits: Limits, test_seconds: float | None, tests: int) -> float:
    """Return the processor time that one run of so many tests has."""
    if test_seconds is None:
        return limits.seconds
    return min(test_seconds * tests, max(test_seconds, limits.total_seconds))


def _run_once(sandbox: Sandbox, program: Program, tests: Sequence[Test]) -> tuple[TestOutcome, ...]:
    """One start."""
    limits: Limits | None = getattr(sandbox, "limits", None)  # a sandbox may have none; then its clock alone counts
    seconds = None if limits is None else seconds_of(limits, program.test_seconds, len(tests))
    own = {} if limits is None or program.memory_mb is None else {"memory_mb": max(program.memory_mb, limits.memory_mb)}
    nonce = secrets.token_hex(16)
    job = _job(program, tests, nonce, seconds, own.get("memory_mb"))
    wait = None if seconds is None else _PATIENCE * seconds
    result = sandbox.run(_HARNESS, json.dumps(job).encode(), seconds=wait, **own)
    records = _records(result.stdout, nonce)
    if not result.started or (-1 not in records and result.status != "timeout"):
        what = f"no answer can be graded: {sandbox.kind} did not start a program ({ending(result)})"
        raise GraderFailureError(what, where="sandbox.kind", fix="run `sdpo doctor`, then resume this run")
    # A test without a line is where the process ended; those after it were not run.
    done = next((index for index in range(len(tests)) if index not in records), len(tests))
    outcomes = [_outcome(test, records[index]) for index, test in enumerate(tests[:done])]
    if done < len(tests):
        last = _ending(result, seconds)
        bounded = seconds is not None and seconds < (program.test_seconds or 0.0) * len(tests)
        if bounded and last.verdict == "timeout" and result.seconds >= (seconds or 0.0):
            last = replace(last, output=f"all tests together may take {seconds:g} s")
        outcomes += [last, *[TestOutcome("not_run")] * (len(tests) - done - 1)]
    return tuple(outcomes)


def _job(
    program: Program, tests: Sequence[Test], nonce: str, seconds: float | None, memory_mb: int | None
) -> dict[str, Any]:
    """Return what the harness reads. It holds inputs only: no expected value ever enters the process."""
    job = {
        "nonce": nonce,
        "code": program.code,
        "entry": program.entry,
        "preamble": program.preamble,
        "setup": program.setup,
        "seconds": seconds,
        "cap": RESULTS_CAP // max(1, len(tests)),
        "tests": [{name: test[name] for name in _SENT if name in test} for test in tests],
    }
    if program.test_seconds is not None:
        job |= {"test_seconds": program.test_seconds, "test_wait": _PATIENCE * program.test_seconds}
    if memory_mb is not None:
        job["stack"] = min(_LARGEST_STACK, (memory_mb << 20) // _STACK_SHARE)
    return job


def _records(stdout: bytes, nonce: str) -> dict[int, dict[str, Any]]:
    """Return the first result line of each test; all other output is ignored."""
    records: dict[int, dict[str, Any]] = {}
    for line in stdout.split(b"\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and record.get("nonce") == nonce and type(record.get("test")) is int:
            records.setdefault(record["test"], record)
    return records


def _ending(result: RunResult, seconds: float | None) -> TestOutcome:
    """Return why a process stopped before it answered; `seconds` of processor time end it by a signal."""
    late = seconds is not None and result.seconds >= seconds and result.code in _KILLED
    if result.status == "timeout" or (result.status == "signal" and (late or result.code in _OUT_OF_TIME)):
        return TestOutcome("timeout")
    if result.status == "output_limit":
        return TestOutcome("error", failure=Failure("OutputLimitExceeded", "the program wrote too much"))
    if result.status == "signal":
        message = "the program crashed (memory or too deep a recursion, perhaps)"
        return TestOutcome("error", failure=Failure("Crash", message))
    return TestOutcome("error", failure=Failure("EarlyExit", "the program ended before it gave a result"))


def _outcome(test: Test, record: dict[str, Any]) -> TestOutcome:
    """Judge one result line; one that cannot be read is an error of the answer."""
    try:
        if "error" in record:
            error = record["error"]
            lines = tuple((int(n), _text(name, 100), _text(source, 200)) for n, name, source in error["lines"][:4])
            failure = Failure(_text(error["type"], 100), _text(error["message"], 500), lines)
            outcome = TestOutcome("error", failure=failure)
            if test["kind"] == "code" and failure.type == "AssertionError" and not lines:  # one of the test's own
                outcome = TestOutcome("wrong", f"AssertionError: {failure.message}".rstrip(": "))
        elif "odd" in record:
            outcome = TestOutcome("wrong", _text(record["odd"], 200))
        else:
            outcome = _compared(test, record)
        return replace(outcome, printed=_text(record.get("printed", ""), 500))
    except _UNREADABLE:
        return TestOutcome("error", failure=Failure("UnreadableResult", "the result could not be read"))


def _compared(test: Test, record: dict[str, Any]) -> TestOutcome:
    """Type and value against what is expected; here, where the answer's code cannot reach."""
    if test["kind"] == "code":
        return TestOutcome("pass") if record["passed"] is True else TestOutcome("wrong")
    if test["kind"] == "stdin":
        output = record["output"]
        if type(output) is not str:
            raise TypeError("output is no text")
        rule = {"tolerance": test["tolerance"], "equality": test.get("equality")}
        if same_output(test["output"], output, **rule):
            return TestOutcome("pass")
        difference = output_difference(test["output"], output, **rule)
        return TestOutcome("wrong", scrub(output), difference=scrub(difference))
    got = decode(record["value"])
    settings = {"tolerance": test["tolerance"], "unordered": bool(test["unordered"]), "equality": test.get("equality")}
    expected = decode(test["expected"])
    if any(same(each, got, **settings) for each in (expected, *map(decode, test.get("alternatives", ())))):
        return TestOutcome("pass")
    changed = tuple(int(index) + 1 for index in record.get("changed", ())[:4])
    difference = value_difference(expected, got, **settings)
    return TestOutcome("wrong", scrub(show(got)), difference=scrub(difference), changed=changed)


def _text(value: Any, limit: int) -> str:
    """Untrusted text, capped, without addresses; raises TypeError for anything else."""
    if type(value) is not str:
        raise TypeError("no text")
    return scrub(value[:limit])


def scrub(text: str) -> str:
    """Memory addresses change from run to run; feedback must not."""
    return _ADDRESS.sub("0x...", text)
