"""Modelfiles: the prompts that Ollama would send are those that the model's own chat template writes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gguf_files import write_sample
from small_tokenizers import FAMILIES, folder

from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.models.gguf.modelfile import go_template, modelfile
from sdpo_mlx.models.gguf.reader import import_gguf

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why? {{ .System }}"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": 'And "then"?'},
]


def executed(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few actions that our templates use."""
    whole = re.fullmatch(
        r"(?P<bos>[^{]*)(?:\{\{ if not \.System \}\}(?P<default>[^{]*)\{\{ end \}\})?"
        r"\{\{ range \.Messages \}\}(?P<cases>.*)\{\{ end \}\}(?P<last>[^{]*)",
        template,
        re.DOTALL,
    )
    assert whole, template
    cases = {
        role: (before, after)
        for role, before, after in re.findall(
            r'\{\{ if eq \.Role "(\w+)" \}\}([^{]*)\{\{ \.Content \}\}([^{]*)\{\{ end \}\}', whole["cases"]
        )
    }
    text = whole["bos"]
    if messages[0]["role"] != "system":
        text += whole["default"] or ""
    for message in messages:
        before, after = cases[message["role"]]
        text += before + message["content"] + after
    return text + whole["last"]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("start", [0, 1, 3], ids=["system", "user", "one question"])
def test_ollamas_prompts_are_the_chats_own(name: str, start: int) -> None:
    chat, family = load_chat(folder(name)), FAMILIES[name]
    messages: Any = MESSAGES[start:]
    folds = name.startswith("gemma")
    if start == 0 and folds:  # a template without a system role: here it is a turn of its own
        return
    template = go_template(chat, family.bos or "")
    assert template is not None
    assert executed(template, messages) == chat.reveal(chat.render(messages))
    unasked = go_template(chat, family.bos or "", added=True)
    assert unasked is not None
    opened = executed(template, messages).removesuffix(executed(unasked, messages))
    assert opened in ("", family.bos)


def test_system_message_of_a_template_without_that_role_is_a_turn() -> None:
    template = go_template(load_chat(folder("gemma2")), "<bos>")
    assert template is not None
    assert "<start_of_turn>user\nBe brief.<end_of_turn>" in executed(template, MESSAGES)


def test_template_that_would_end_its_quotes_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = load_chat(folder("tiny"))
    monkeypatch.setattr(chat, "_template", chat._template.replace("assistant", '""""assistant'))
    assert go_template(chat) is None


def test_modelfile_is_instructions_that_ollama_knows(tmp_path: Path) -> None:
    write_sample(tmp_path / "m.gguf", "qwen2", "F32")
    made = import_gguf(tmp_path / "m.gguf", tmp_path / "model")
    (made / "chat_template.jinja").write_text(FAMILIES["qwen3"].template, encoding="utf-8")
    text = modelfile(load_chat(made), made, "run-F16.gguf")
    assert text.startswith("FROM ./run-F16.gguf\n")
    rest = re.sub(r'TEMPLATE """.*?"""', "TEMPLATE x", text, flags=re.DOTALL)
    assert all(re.fullmatch(r"FROM \S+|TEMPLATE x|PARAMETER stop \"[^\"]+\"", line) for line in rest.splitlines())
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert text.count("TEMPLATE") == 1
