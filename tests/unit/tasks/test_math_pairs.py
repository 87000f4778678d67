"""Pairs of a right and a given answer, with the verdict of a careful reader, through the worker that runs use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from paths import DATA, ROOT

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.tasks.math import pool
from sdpo_mlx.tasks.math.extract import find_answer, tidied
from sdpo_mlx.tasks.math.pool import TOO_LONG, Pool

# Pairs of `pairs.jsonl` that we judge otherwise than its reader, each with the reason. None is accepted wrongly.
DECLINED: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="module")
def workers() -> Iterator[Pool]:
    """One worker that all tests here share."""
    one = Pool(most=1, seconds=120)
    yield one
    one.close()


def rows(name: str) -> list[tuple[str, str, bool]]:
    """Right answer, given answer, verdict."""
    lines = (DATA / "math" / name).read_text(encoding="utf-8").splitlines()
    return [(row["gold"], row["answer"], row["right"]) for row in map(json.loads, lines)]


def judged_otherwise(workers: Pool, pairs: list[tuple[str, str, bool]]) -> set[tuple[str, str]]:
    """Pairs whose grade is not the reader's."""
    found = set()
    for right, answer, verdict in pairs:
        given = find_answer(answer) or find_answer(f"\\boxed{{{answer}}}")
        assert given is not None
        if workers.compare(tidied(right), given.text).equal is not verdict:
            found.add((right, answer))
    return found


def test_pairs_are_graded_as_a_careful_reader_does(workers: Pool) -> None:
    pairs = rows("pairs.jsonl")
    assert len(pairs) == 510
    assert judged_otherwise(workers, pairs) == set(DECLINED)
    assert not {pair for *pair, verdict in pairs if tuple(pair) in DECLINED and not verdict}


@pytest.mark.slow  # 2,300 more
def test_variants_of_each_kind_are_graded_alike(workers: Pool) -> None:
    assert judged_otherwise(workers, rows("variants.jsonl")) == set()


def test_equal_pairs_are_equal_to_themselves(workers: Pool) -> None:
    golds = sorted({right for right, _, _ in rows("pairs.jsonl")})
    assert [gold for gold in golds if not workers.compare(tidied(gold), tidied(gold)).equal] == []


HOSTILE = (
    "9^{9^{9^9}}",
    "10**10**10",
    "2^{99999999999999999999}",
    "(" * 300 + "1" + ")" * 300,
    "{" * 60 + "1" + "}" * 60,
    "\\frac" * 150,
    "\\sqrt" * 100 + "2",
    "9" * 700,
    "1e999999999",
    "((((((" + "!" * 200,
    "300!!",
    "|" * 300,
    "-" * 600 + "1",
    "^{2" * 90,
    "1," * 390,
    "(a," * 90,
    "\ud800",
    "\u0000\u202e12\u202c",
    "1/0",
    "\\begin{pmatrix}" * 20,
    "\\sqrt{" + "7" * 60 + "}",
    "$" * 999,
    "\\text{not} " * 80 + "17",
    "x<1 or " * 100 + "x<1",
    "5 million million million million",
    "word " + "000121" * 150 + "=",
    "$1 a" * 200 + "$",
    "0." + "3" * 800 + "...",
    '__import__("os").system("true")',
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_answer_is_wrong(workers: Pool, text: str) -> None:
    assert not workers.compare("17", text).equal
    assert not workers.compare(text, "17").equal


@pytest.mark.slow  # each ends a worker, after its seconds of CPU time
@pytest.mark.parametrize("text", ["(x+y+z+a+b)^{300}", "\\sum_{k=1}^{10^{10}} k^{k}"])
def test_endless_question_ends_its_worker_and_the_next_is_answered(text: str) -> None:
    one = Pool(most=1)
    assert one.compare("17", text).form == TOO_LONG
    assert one.compare("1/3", "\\frac13").equal
    one.close()


def test_slow_worker_is_ended_and_the_next_question_is_answered() -> None:
    one = Pool(most=1, seconds=120)
    assert one.compare("1/2", "0.5").equal
    (worker,) = one._all
    one._seconds = 0.0
    assert one.compare("1/7", "\\frac17").form == TOO_LONG
    assert worker.poll() is not None
    one._seconds = 120
    assert one.compare("1/3", "\\frac13").equal
    one.close()


def test_dead_worker_is_replaced(workers: Pool) -> None:
    assert workers.compare("1/4", "0.25").equal
    (worker,) = workers._all
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    assert workers.compare("1/8", "0.125").equal


def test_eight_threads_get_their_own_verdicts(workers: Pool) -> None:
    questions = [(f"{number}/7", f"\\frac{{{number + wrong}}}{{7}}") for number in range(40) for wrong in (0, 1)]
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda question: workers.compare(*question).equal, questions))
    assert verdicts == [True, False] * 40


def test_worker_runs_no_text_as_a_program(workers: Pool, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    attack = f"__import__('pathlib').Path('{planted}').touch()"
    for text in (attack, f"f({attack})", f"\\text{{{attack}}}", f"\\operatorname{{{attack}}}", f"\\max({attack},1)"):
        assert not workers.compare("1", text).equal
    assert not planted.exists()


def test_worker_ends_with_the_process_that_asked(tmp_path: Path) -> None:
    script = (
        "from sdpo_mlx.tasks.math.pool import shared; import os\n"
        "print(shared().compare('1/2', '0.5').equal, *(one.pid for one in shared()._all), flush=True)\n"
        "os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    right, pid = done.stdout.split()
    assert right == "True"
    for _ in range(200):
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("the worker is still there")


def test_worker_that_cannot_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    with pytest.raises(ConfigError, match="could not be started"):
        Pool().compare("1", "2")
