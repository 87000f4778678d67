"""Wrong answers made from right ones, and what the published test code itself says of an answer."""

from __future__ import annotations

import ast
from typing import Any

from sdpo_mlx.sandbox.base import Sandbox
from sdpo_mlx.tasks.code.harness import decode
from sdpo_mlx.types import Problem

MUTANTS = ("empty", "constant", "shifted")
_TURNED: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.In: ast.NotIn,
}


def solution(row: dict[str, Any]) -> str:
    """The canonical solution as a whole program."""
    return f"{row['prompt']}{row['canonical_solution']}"


def mutant(row: dict[str, Any], problem: Problem, kind: str) -> str:
    """The solution with nothing in it, with one value that a test expects, or wrong by one somewhere."""
    tree = ast.parse(solution(row))
    entry = next(node for node in reversed(tree.body) if getattr(node, "name", "") == row["entry_point"])
    assert isinstance(entry, ast.FunctionDef)
    if kind == "empty":
        entry.body = [ast.Pass()]
    elif kind == "constant":
        expected = next((test["expected"] for test in problem.private["tests"] if "expected" in test), 0)
        entry.body = [ast.parse(f"return {decode(expected)!r}").body[0]]
    else:
        _shift(entry)
    return ast.unparse(tree)


def _shift(entry: ast.FunctionDef) -> None:
    """Change the last number by one; without numbers turn the last comparison or sum, else leave out a step."""
    for statement in reversed(entry.body):
        for node in reversed(list(ast.walk(statement))):
            if isinstance(node, ast.Constant) and type(node.value) in (int, float):
                node.value += 1  # type: ignore[operator]
                return
    for node in reversed(list(ast.walk(entry))):
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _TURNED:
            node.ops[0] = _TURNED[type(node.ops[0])]()
            return
        if isinstance(node, ast.BinOp) and type(node.op) in _TURNED:
            node.op = _TURNED[type(node.op)]()
            return
    entry.body[-1] = ast.parse(f"return [{ast.unparse(entry.body[-1]).removeprefix('return')}]").body[0]


def really_passes(sandbox: Sandbox, row: dict[str, Any], answer: str) -> bool:
    """Whether the published `check` lets the answer pass, run as a plain program."""
    done = "ran to its end"
    program = f"{row['prompt']}    pass\n\n{answer}\n\n{row['test']}\n\ncheck({row['entry_point']})\nprint({done!r})\n"
    result = sandbox.run(program, seconds=10.0)
    return result.status == "exited" and result.code == 0 and done.encode() in result.stdout
