"""The program of an answer is found by the rules of CommonMark, its thinking left out."""

from __future__ import annotations

import pytest

from sdpo_mlx.tasks.code.extract import extract_code
from sdpo_mlx.tasks.references import code_reference

ADD = "def add(a, b):\n    return a + b\n"
DOCSTRING = 'def add(a, b):\n    """Add.\n\n    ```python\n    add(1, 2)\n    ```\n    """\n    return a + b\n'
IN_TEXT = 'def add(a, b):\n    """Between <think> and\n</think> it thinks."""\n    return a + b  # no </think>\n'
STRING = "END = \"</think>\"\nSTART = '<think>'\n" + ADD


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\na = 1\n```\nor\n```python\na = 2\n```", "a = 2\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n```\nprints\n```\n1\n```", "a = 1\n"),
        ("  ```python\n  a = 1\n  ```", "a = 1\n"),
        ("no code", None),
        ("", None),
        ("So:\n\n    ```python\n    a = 1\n    ```", None),  # an indented block is no fence
        ("Text.\n\n    a = 1\n", None),
        ("```json\n{}\n```", None),
        ("Use ```a = 1``` here.", None),
    ],
)
def test_program_is_the_last_python_block_otherwise_the_last_unmarked_one(text: str, code: str | None) -> None:
    assert extract_code(text) == code
    assert extract_code(text, truncated=True) == code


@pytest.mark.parametrize(
    "opening",
    [
        *("```python", "```Python ", "```py", "```python3", "```python3.11", "```Python 3", "~~~python", "````python"),
        *('```python title="add.py"', "```python add.py", "```python:add.py", "```python {1,2}", "```python{1,2}"),
        *("```{.python}", "```{ .python .numberLines }", "```{#id .python}", "```{python}", "```{python, echo=FALSE}"),
        *("```{code-cell} ipython3", "```python linenos=true", "```python,linenos", "```python=12", "```python#L1"),
        *(
            '```{python title="add.js"}',
            "```python-3.11",
            "```python # add.py",
            "```python/add.py",
            "~~~ {.python}",
            "```src/add.py",
            "```add.py",
            "```language-python",
            "```lang=python",
            "``` python",
            "`````   py  x y z",
        ),
    ],
)
def test_info_strings_of_every_form_mark_python(opening: str) -> None:
    fence = opening[: len(opening) - len(opening.lstrip("`~"))]
    text = f"So:\n{opening}\n{ADD}{fence}\nThat is all.\n```\nprose\n```\n"
    assert extract_code(text) == ADD


@pytest.mark.parametrize("opening", ["```{1,2}", '```title="add.py"', "```12:15:add.py", "```"])
def test_info_strings_without_a_language_are_unmarked(opening: str) -> None:
    assert extract_code(f"{opening}\n{ADD}```\n") == ADD
    assert extract_code(f"{opening}\nprose\n```\n```python\n{ADD}```\n{opening}\nprose\n```\n") == ADD


@pytest.mark.parametrize("opening", ["```pycon", "```python-repl", "```text", "```bash", "```pyrex", "```output.txt"])
def test_other_languages_are_no_programs(opening: str) -> None:
    assert extract_code(f"```python\n{ADD}```\n{opening}\n>>> add(1, 2)\n3\n```\n") == ADD
    assert extract_code(f"{opening}\n>>> add(1, 2)\n```\n") is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (f"```python\n{DOCSTRING}```", DOCSTRING),
        (f"```python\n\tx = '''\n\t```\n\t'''\n{ADD}```", f"\tx = '''\n\t```\n\t'''\n{ADD}"),
        ('````python\nx = """\n```\n"""\n````', 'x = """\n```\n"""\n'),
        ('~~~py\nx = """\n```\n"""\n~~~', 'x = """\n```\n"""\n'),
        (f"1. First\n   ```python\n   {ADD[:14]}\n       return a + b\n   ```\n2. Then\n", ADD),
        (f"1. First\n   ```python\n{ADD}   ```\n2. Then\n", ADD),  # less indented than its list item
        ("  ```python\ndef f():\n  return 1\n  ```\n", "def f():\n  return 1\n"),
        (f"> ```python\n> {ADD[:14]}\n>     return a + b\n> ```\n", ADD),
        (f"<answer>\n```python\n{ADD}```\n</answer>", ADD),
        (f"```python\r\n{ADD.replace(chr(10), chr(13) + chr(10))}```\r\n", ADD),
        ("```python\nx = 'a\x0cb\u2028c'\n```", "x = 'a\x0cb\u2028c'\n"),
    ],
)
def test_fences_inside_strings_lists_and_quotes_are_read_by_their_indentation(text: str, code: str) -> None:
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\ndef add(a, b):\n    return a + b```", ADD),
        ("```python\ndef add(a, b):\n    return a + b```  \n\nIt adds.\n", ADD),
        ("```python\ndef add(a, b):\n    return a + b ```\n\nIt adds.\n```python\nx = 1```\nSo.", "x = 1\n"),
        ("````py\ndef add(a, b):\n    return a + b````\nSo.\n", ADD),
        ("```python\nx = '''\na```\n'''\n```", "x = '''\na```\n'''\n"),  # inside a string
        ("```python\n# like a```\nx = 1\n```", "# like a```\nx = 1\n"),  # inside a comment
        ("```python\nx = 1  # one```\n\nSo.\n", "x = 1  # one\n"),
        ("```python\nx = 'a``` b'\ny = 1```\nSo.", "x = 'a``` b'\ny = 1\n"),
    ],
)
def test_closing_fence_behind_the_last_line_of_code_closes(text: str, code: str) -> None:
    assert extract_code(text) == code


@pytest.mark.parametrize(
    ("text", "finished", "cut"),
    [
        (f"```python\n{ADD}", ADD, None),
        (f"```python\n{ADD}```\n```python\nx = 1", "x = 1\n", ADD),
        (f"```python\n{ADD}```\n```", ADD, ADD),
        (f"```python\n{ADD}``", ADD, None),
        (f"````python\n{ADD}```\n", ADD, None),
        (f"```\n{ADD}```\n```\n \n", ADD, ADD),
        (f"```python\n{ADD}```\nIt prints:\n```\n3", ADD, ADD),
    ],
)
def test_block_without_its_closing_fence_counts_in_a_finished_answer(text: str, finished: str, cut: str | None) -> None:
    assert extract_code(text) == finished
    assert extract_code(text, truncated=True) == cut


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<think>\n```python\nbad\n```\n</think>\n```py\na = 1\n```", "a = 1\n"),
        ("<think>\n```python\nbad\n</think>\n```py\na = 1\n```", "a = 1\n"),
        ('<think>\n```python\ndef f():\n    """bad\n</think>\n```py\na = """b"""\n```', 'a = """b"""\n'),
        ("```python\nbad\n</think>\n\n```py\na = 1\n```", "a = 1\n"),
        ("Let me see.\n```python\nbad\n```\n</think>\n```py\na = 1\n```", "a = 1\n"),
        ("<think>\n```python\nbad\n```\n", None),
        ("```python\nbad\n```\n</think>\nI do not know.", None),
        (f"```python\n{ADD}```\n<think>or</think>", ADD),
        (f"```python\n{ADD}```\n<think>or another one", ADD),
        (f"<think>a</think>```\n```\n```python\n{ADD}```\n<think>or</think> so", ADD),
        (f"```python\n{STRING}```", STRING),
        (f"<think>\nhm\n</think>\n\n```python\n{STRING}```\n", STRING),
        (f"hm\n</think>\n\n```python\n{IN_TEXT}```\n", IN_TEXT),
        (f"The mark `</think>` ends it.\n```python\n{ADD}```\n`<think>` begins it.", ADD),
        (f"```python\n{STRING}", STRING),
    ],
)
def test_thinking_is_removed_and_its_marks_in_programs_are_text(text: str, code: str | None) -> None:
    assert extract_code(text) == code


def test_hostile_answers_are_read_to_their_end() -> None:
    assert extract_code("`" * 100_000) is None
    assert extract_code("> " * 5_000 + "```\n" + "b\n" * 5_000) is None
    assert extract_code("- " * 5_000 + "```python\nx\n" + "```python\na```\n" * 1_000) is None
    assert extract_code("```python\na" + " " * 100_000 + "b") is not None
    assert extract_code("```python\n" + '\\"""' * 5_000 + "</think>" * 5_000) is None


def test_reference_whose_docstring_holds_a_fence_is_fenced_longer() -> None:
    assert extract_code(code_reference({"code": DOCSTRING}) or "") == DOCSTRING
    assert code_reference({"reference": f"So:\n```python\n{ADD}```"}) == f"So:\n```python\n{ADD}```"
