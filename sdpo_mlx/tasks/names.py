"""The shipped tasks and what each asks, without any of their code."""

from __future__ import annotations

from collections.abc import Mapping

DESCRIPTIONS: Mapping[str, str] = {
    "tiny": "list programs in a library whose names only the environment knows (the embedded task)",
    "tiny:mid": "the same with four or five operations, where the embedded model starts near 0",
    "tiny:hard": "the same with five or six operations, for training at test time",
    "code": "Python problems, tests run in a sandbox",
    "code:easy": "the same up to the level easy, for small models (also :one_liner, :medium)",
    "math": "problems with one final answer, compared by value; also GSM8K, MATH, AIME and DeepMath rows",
    "math:easy": "the same up to the level easy, for small models (also :medium)",
    "tools": "requests to answer with tool calls, as lines Action and Action Input",
    "tools:json": "the same with the JSON calls of the model's own chat template",
    "tools:paper": "as tools, judged by the paper's looser rule",
    "science": "multiple-choice questions in physics, chemistry, biology, materials",
    "science:physics": "the same in one domain (also :chemistry, :biology, :materials)",
    "game": "find what is hidden by asking, in several turns (also :number, :code, :map)",
    "game:library": "a game of two turns that the embedded model learns: the reply tells which names exist",
    "rubric": "free text judged by checks that each row carries: words, patterns, JSON, language",
    "judge": "questions of any kind; a language model remarks on each answer and scores it",
}
