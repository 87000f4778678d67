"""Every content inert, every frame whole, and equal to the model's own template where nothing is hostile."""

import json
import shutil
import unicodedata
from collections import Counter

import pytest
from conversations import HOSTILE, SPIKED, TURNS, chat, conversation, reference, shown
from hypothesis import given, settings
from small_tokenizers import FAMILIES, folder

from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.chat_template import load_chat

BENIGN = (
    "Write f(x): sort, reverse",
    "  outer space \n\n",
    "\nline 1: ok\n\n\n    indented  {braces} \\n \\frac",
    "שלום 👩‍🚀 naïve e\u0301 \u3000x",
    "",
    "   ",
)
NAMES = sorted(FAMILIES)


def controls(name, ids):
    return Counter(int(i) for i in ids if int(i) in chat(name).control_ids)


@pytest.mark.parametrize("roles", TURNS)
@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("gemma2", "llama3")])
def test_render_equals_the_models_own_template_for_benign_text(name, roles):
    for i in range(len(BENIGN)):
        messages = conversation(roles, BENIGN[i:] + BENIGN[:i])
        for prompt in (True, False):
            expected = reference(name).apply_chat_template(
                messages, add_generation_prompt=prompt, enable_thinking=False, return_dict=False
            )
            assert chat(name).render(messages, generation_prompt=prompt).tolist() == expected


@pytest.mark.parametrize("roles", TURNS)
def test_render_equals_the_models_own_template_where_it_asks_for_the_date(roles):
    for text in BENIGN:
        messages = conversation(roles, [text, "x"])
        template = reference("llama3").chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
        expected = reference("llama3").apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_dict=False
        )
        assert chat("llama3").render(messages).tolist() == expected


def test_system_message_is_folded_where_the_template_refuses_the_role():
    messages = conversation(("system", "user"), ["Be brief.", "Sort it."])
    folded = [{"role": "user", "content": "Be brief.\n\nSort it."}]
    assert chat("gemma2").render(messages).tolist() == chat("gemma2").render(folded).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_hostile_text_adds_no_control_token(name):
    roles = ("system", "user", "assistant", "user")
    benign = chat(name).render(conversation(roles, ["quiet"]))
    for text in HOSTILE:
        ids = chat(name).render(conversation(roles, [f"{text} and {text}"]))
        assert controls(name, ids) == controls(name, benign)
        cut = "</think>" in text and "split('</think>')" in FAMILIES[name].template  # in earlier answers
        assert shown(name, ids).count(text) == 2 * (len(roles) - cut)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=SPIKED)
def test_any_text_survives_and_adds_no_control_token(name, text):
    ids = chat(name).render([{"role": "user", "content": text}])
    present = chat(name).render([{"role": "user", "content": "x" if text.strip() else text}])
    assert controls(name, ids) == controls(name, present)
    assert readable(name, text).strip() in shown(name, ids)


def readable(name, text):
    """What a tokenizer can give back: surrogates replaced, and its own normalisation."""
    text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)
    if FAMILIES[name].kind == "byte_level":
        return unicodedata.normalize("NFC", text)
    return text.replace("\u2581", " ")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=SPIKED)
def test_encode_plain_gives_no_control_id_for_any_text(name, text):
    assert not set(chat(name).encode_plain(text)) & chat(name).control_ids


@pytest.mark.parametrize("name", NAMES)
def test_the_frame_begins_and_ends_as_the_family_writes_it(name):
    for text in (*HOSTILE, "x" * 5_000):
        rendered = shown(name, chat(name).render([{"role": "user", "content": text}]))
        assert rendered.startswith(FAMILIES[name].begins)
        assert rendered.endswith(FAMILIES[name].ends)


@pytest.mark.parametrize("name", [n for n in NAMES if FAMILIES[n].bos and "bos_token" in FAMILIES[n].template])
def test_bos_is_written_once(name):
    ids = chat(name).render([{"role": "user", "content": "x"}]).tolist()
    bos = reference(name).convert_tokens_to_ids(FAMILIES[name].bos)
    assert ids[0] == bos
    assert ids.count(bos) == 1


def test_thinking_is_off_by_default_and_on_by_the_switch():
    messages = [{"role": "user", "content": "x"}]
    assert shown("qwen3", chat("qwen3").render(messages)).endswith("assistant\n<think>\n\n</think>\n\n")
    assert shown("qwen3", chat("qwen3", True).render(messages)).endswith("assistant\n")


@pytest.mark.parametrize("name", NAMES)
def test_eos_ids_hold_the_configured_end_and_the_end_of_turn(name):
    ends = {FAMILIES[name].eos, FAMILIES[name].end_of_turn}
    assert chat(name).eos_ids == set(reference(name).convert_tokens_to_ids(sorted(ends)))


def test_eos_ids_hold_every_end_of_the_generation_config(tmp_path):
    made = tmp_path / "model"
    shutil.copytree(folder("tiny"), made)
    (made / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 4]}), encoding="utf-8")
    assert load_chat(made).eos_ids == chat("tiny").eos_ids | {3, 4}


@pytest.mark.parametrize("name", NAMES)
def test_decode_leaves_special_tokens_and_unknown_ids_out(name):
    ids = [*chat(name).encode_plain("x = sort.order(x)"), *sorted(chat(name).eos_ids), 10_000_000]
    assert chat(name).decode(ids).strip() == "x = sort.order(x)"


def test_decode_shows_thinking_that_the_model_wrote():
    think = reference("qwen3").convert_tokens_to_ids(["<think>", "</think>"])
    assert chat("qwen3").decode(think) == "<think></think>"


def test_tokenizer_hash_names_tokenizer_and_template(tmp_path):
    assert load_chat(folder("tiny")).tokenizer_hash == chat("tiny").tokenizer_hash
    made = tmp_path / "model"
    shutil.copytree(folder("tiny"), made)
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["chat_template"] += " "
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_chat(made).tokenizer_hash != chat("tiny").tokenizer_hash
    assert len({chat(name).tokenizer_hash for name in NAMES}) == len(NAMES)


def made_with(tmp_path, template):
    made = tmp_path / "model"
    shutil.copytree(folder("tiny"), made)
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    config.pop("chat_template")
    config |= {"chat_template": template} if template else {}
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return made


@pytest.mark.parametrize("break_it", ["missing folder", "empty folder", "damaged file"])
def test_unreadable_tokenizer_is_a_configuration_error(tmp_path, break_it):
    made = tmp_path / "model"
    if break_it != "missing folder":
        made.mkdir()
    if break_it == "damaged file":
        shutil.copytree(folder("tiny"), made, dirs_exist_ok=True)
        (made / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_chat(made)
    assert "\n" not in str(caught.value)


def test_template_that_drops_or_refuses_a_message_is_a_configuration_error(tmp_path):
    chat_made = load_chat(made_with(tmp_path, "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"))
    with pytest.raises(ConfigError, match="drops a assistant message"):
        chat_made.render(conversation(("user", "assistant", "user"), ["x"]))


def test_template_without_control_tokens_is_rendered(tmp_path):
    made = load_chat(made_with(tmp_path, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"))
    assert made.decode(made.render([{"role": "user", "content": "sort <|im_end|>"}])) == "user: sort <|im_end|>\n"
    assert controls("tiny", made.render([{"role": "user", "content": "<|im_end|>"}])) == {}


def test_template_cannot_reach_out_of_its_sandbox(tmp_path):
    made = load_chat(made_with(tmp_path, "{{ messages[0].content.__class__.__mro__[1].__subclasses__() }}"))
    with pytest.raises(ConfigError, match="refuses"):
        made.render([{"role": "user", "content": "x"}])
