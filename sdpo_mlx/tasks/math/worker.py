"""Runs by itself as a script: answers, one JSON line each, whether two answers are the same and, if not, in what form.

A process of its own, because sympy cannot be interrupted in a thread and some short expressions never end. It takes
LaTeX by grammar only. sympy turns number texts into numbers through `eval`; here that way takes nothing else.
"""

from __future__ import annotations

import json
import logging
import re
import resource
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

CPU_SECONDS = 3.0  # for one question: then the system ends this process, whatever it is doing
_MEMORY = 2 << 30  # bytes of address space
_LITERAL = re.compile(r"\s*(?:Integer|Float)\s*\(\s*'?[0-9.eE+-]{1,200}'?\s*\)\s*")


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)
    answers = sys.stdout
    sys.stdout = sys.stderr
    _limit_memory()
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
    compare, form = (import_module(f"sdpo_mlx.tasks.math.{name}") for name in ("compare", "form"))
    _guard_evaluation()
    _say(answers, {})
    for line in sys.stdin:
        asked = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            equal = compare.equal(asked["right"], asked["given"])
            said = {"equal": equal, "form": "" if equal else form.wrong_form(asked["right"], asked["given"])}
        except (Exception, RecursionError):
            said = {"equal": False, "form": None}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(answers, said)


def _say(answers: Any, said: dict[str, Any]) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


def _limit_memory() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (OSError, ValueError):
        return  # a system that knows no such limit; the time limit stays


def _guard_evaluation() -> None:
    import_module("sympy.physics.units")  # reads the names of its units by `eval` when first needed
    from sympy.parsing import sympy_parser

    evaluate = sympy_parser.eval_expr

    def literal_only(code: str, local_dict: Any, global_dict: Any) -> Any:
        if not _LITERAL.fullmatch(code):
            raise ValueError("only literal numbers are evaluated")
        return evaluate(code, local_dict, global_dict)

    sympy_parser.eval_expr = literal_only


if __name__ == "__main__":
    main()
