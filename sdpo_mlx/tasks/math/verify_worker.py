"""Runs by itself as a script: answers, one JSON line each, whether math-verify takes two answers for the same.

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
from typing import Any

_MEMORY = 2 << 30  # bytes of address space
_LAST_RESORT = 120  # seconds for one question, in case nobody is left to end this process
_LITERAL = re.compile(r"\s*(?:Integer|Float)\s*\(\s*'?[0-9.eE+-]{1,200}'?\s*\)\s*")


def main() -> None:
    """Answer until the input ends."""
    logging.disable(logging.CRITICAL)
    answers = sys.stdout
    sys.stdout = sys.stderr
    _limit_memory()
    _guard_evaluation()
    from math_verify import verify

    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        signal.alarm(_LAST_RESORT)
        try:
            right, given = _parsed(asked["right"]), _parsed(asked["given"])
            equal = bool(right and given and verify(right, given, timeout_seconds=None))
        except (Exception, RecursionError):
            equal = False
        signal.alarm(0)
        answers.write(json.dumps({"equal": equal}) + "\n")
        answers.flush()


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    config = [LatexExtractionConfig(boxed_match_priority=0)]
    found: list[Any] = parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    return found


def _limit_memory() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (OSError, ValueError):
        return  # a system that knows no such limit; the time-out stays


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
