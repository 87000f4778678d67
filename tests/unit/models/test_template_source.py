"""Base models get the plain layout, a template can be given, and answers end where the next turn begins."""

import json
import shutil
from functools import cache

import numpy as np
import pytest
from conversations import HOSTILE, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import folder

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.models.gguf.modelfile import modelfile
from sdpo_mlx.models.template_source import MAX_BYTES, PLAIN_LAYOUT, PLAIN_STOP
from sdpo_mlx.types import Generation

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " sort \n"},
    {"role": "assistant", "content": "x"},
    {"role": "user", "content": "y"},
]
CUSTOM = "{% for m in messages %}{{ m.role ~ '> ' ~ m.content ~ '<|im_end|>\n' }}{% endfor %}"


@pytest.fixture
def base(tmp_path):
    """A model folder without a chat template."""
    return without_template(tmp_path, "tiny")


def without_template(tmp_path, name):
    made = tmp_path / f"base-{name}"
    shutil.copytree(folder(name), made)
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    del config["chat_template"]
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


def test_base_model_gets_the_plain_layout_with_one_warning(base):
    chat = load_chat(base)
    assert chat.reveal(chat.render(TURNS)) == "Be brief.\n\nUser: sort\n\nAssistant: x\n\nUser: y\n\nAssistant:"
    assert len(chat.source.warnings) == 1
    assert "no chat template" in chat.source.warnings[0]
    assert "\n" not in chat.source.warnings[0]
    assert not load_chat(base, template="plain").source.warnings
    assert load_chat(base, template="plain").tokenizer_hash == chat.tokenizer_hash


def test_plain_layout_replaces_a_models_own_template_where_it_is_asked_for():
    ids = load_chat(folder("qwen3"), template="plain").render(TURNS).tolist()
    assert ids == reference("qwen3").apply_chat_template(
        TURNS, chat_template=PLAIN_LAYOUT, add_generation_prompt=True, return_dict=False
    )


def test_plain_layout_begins_as_the_tokenizer_begins_its_texts(tmp_path):
    chat = load_chat(without_template(tmp_path, "llama3"))
    ids = chat.render(TURNS).tolist()
    assert ids == reference("llama3")(chat.decode(ids))["input_ids"]
    assert chat.reveal(ids[:1]) == "<|begin_of_text|>"


@pytest.mark.parametrize("text", HOSTILE)
def test_plain_layout_has_no_control_token_whatever_a_message_holds(base, text):
    chat = load_chat(base)
    assert not set(chat.render([{**turn, "content": text} for turn in TURNS]).tolist()) & chat.control_ids


def test_file_is_read_into_a_setting_that_needs_no_file(tmp_path, base):
    file = tmp_path / "own.jinja"
    file.write_text(CUSTOM, encoding="utf-8")
    chat = load_chat(base, template=str(file))
    file.unlink()
    again = load_chat(base, template=chat.source.setting)
    expected = reference("tiny").apply_chat_template(TURNS, chat_template=CUSTOM, return_dict=False)
    assert again.render(TURNS).tolist() == chat.render(TURNS).tolist() == expected
    assert again.tokenizer_hash == chat.tokenizer_hash != load_chat(base).tokenizer_hash
    assert not chat.source.warnings


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe{{ x }}", "not UTF-8"),
        (b"{{ x }}" + b" " * MAX_BYTES, "larger than"),
        (b"User: ", "no Jinja template"),
        (b"a\n{% for %}", "not a valid Jinja template"),
        (b"{% include 'x' %}{{ x }", "not a valid Jinja template"),
    ],
)
def test_file_that_is_no_template_is_a_configuration_error(tmp_path, base, content, said):
    file = tmp_path / "own.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=said) as caught:
        load_chat(base, template=str(file))
    assert "\n" not in str(caught.value)
    assert "own.jinja" in str(caught.value)


def test_given_template_cannot_reach_out_of_its_sandbox(base):
    chat = load_chat(base, template="{{ messages[0].content.__class__.__mro__ }}{{ ''._origin }}")
    with pytest.raises(ConfigError, match="refuses"):
        chat.render(TURNS)


def test_several_templates_without_a_default_are_a_configuration_error(base):
    config = json.loads((base / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] = [{"name": "rag", "template": CUSTOM}, {"name": "other", "template": CUSTOM}]
    (base / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="no default"):
        load_chat(base)
    assert load_chat(base, template="plain").render(TURNS).size


def generation(chat, text):
    ids = np.array(chat.encode_plain(text), dtype=np.int32)
    return Generation(ids, np.arange(ids.size, dtype=np.float32), "length")


@settings(max_examples=60, deadline=None)
@given(
    before=st.text(st.sampled_from("ab é\n:User"), max_size=12),
    after=st.text(st.sampled_from("ab é\n:User"), max_size=12),
)
def test_answers_of_the_plain_layout_end_where_the_next_turn_begins(before, after):
    chat = plain_chat()
    made = generation(chat, before + PLAIN_STOP + after)
    cut = chat.ended(made)
    whole = chat.decode(made.ids_T)
    assert (cut.finish, made.finish) == ("stop", "length")
    assert PLAIN_STOP in chat.decode(cut.ids_T)
    assert PLAIN_STOP not in chat.decode(cut.ids_T[:-1])
    assert cut.ids_T.tolist() == made.ids_T[: cut.ids_T.size].tolist()
    assert cut.logps_T.tolist() == made.logps_T[: cut.ids_T.size].tolist()
    assert chat.answer(cut.ids_T) == chat.answer(made.ids_T) == whole.partition(PLAIN_STOP)[0].rstrip()


@cache
def plain_chat(name="tiny"):
    return load_chat(folder(name), template="plain")


def test_answers_without_the_next_turn_and_of_other_templates_are_left_alone():
    plain, own = plain_chat(), load_chat(folder("tiny"))
    for chat, text in ((plain, " User: x\n"), (own, "x\nUser: y")):
        made = generation(chat, text)
        assert chat.ended(made) is made
        assert chat.answer(made.ids_T) == text


def test_export_with_the_plain_layout_is_known_again_and_its_modelfile_stops_there(base):
    chat = load_chat(base)
    (base / "chat_template.jinja").write_text(chat.source.texts[0], encoding="utf-8")
    own = load_chat(base)
    assert (own.source.stop, own.source.warnings, own.tokenizer_hash) == (PLAIN_STOP, (), chat.tokenizer_hash)
    text = modelfile(own, base, "x.gguf")
    assert 'PARAMETER stop "\\nUser:"' in text
    assert "User: {{ .Content }}" in text


@pytest.mark.parametrize("name", ["tiny", "gemma3"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["\nUser", ":", "\n", "User:", "é", " a", PLAIN_STOP, "er"]), max_size=8).map("".join))
def test_stop_text_is_seen_at_the_token_that_completes_it_and_not_before(name, text):
    chat = plain_chat(name)
    made = generation(chat, text)
    seen = [chat.at_stop_text(made.ids_T[: n + 1].tolist()) for n in range(made.ids_T.size)]
    assert any(seen) == (PLAIN_STOP in text)
    assert chat.ended(made).ids_T.size == (seen.index(True) + 1 if any(seen) else made.ids_T.size)


FENCE = "\n```\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("```python\nx = 1\n```\nIt is 1.", "```python\nx = 1\n```\n"),
        ("```python\nx = 1\n```", None),
        ("<think>\n```\nx\n```\n</think>a\n```\nb", "<think>\n```\nx\n```\n</think>a\n```\n"),
        ("<think>\n```\nx\n```\n", None),
    ],
)
@pytest.mark.parametrize("name", ["tiny", "gemma3"])
def test_answers_end_after_a_text_of_the_settings_outside_of_thinking(name, text, shown):
    chat = load_chat(folder(name)).stopping_at([FENCE, "never"])
    made = generation(chat, text)
    seen = [chat.at_stop_text(made.ids_T[: n + 1].tolist()) for n in range(made.ids_T.size)]
    cut = chat.ended(made)
    assert any(seen) == (shown is not None)
    assert cut.ids_T.size == (seen.index(True) + 1 if any(seen) else made.ids_T.size)
    assert chat.answer(cut.ids_T).startswith(shown or text)
    assert FENCE not in chat.decode(cut.ids_T[:-1]).rpartition("</think>")[2] or shown is None


def test_thinking_that_the_prompt_opened_must_be_closed_before_an_answer_can_end(base):
    chat = load_chat(base, thinking=True).stopping_at([FENCE])
    open_, closed = (generation(chat, text) for text in ("a\n```\nb", "a\n```\nb</think>\n```\nc"))
    assert chat.ended(open_) is open_
    assert chat.decode(chat.ended(closed).ids_T).endswith("</think>\n```\n")
    assert not load_chat(base).stopping_at([FENCE]).stopping_at(()).at_stop_text(open_.ids_T.tolist())
