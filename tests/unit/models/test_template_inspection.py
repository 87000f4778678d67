"""Templates that look into contents render as `apply_chat_template` does, and contents add no control token."""

import dataclasses
from collections import Counter
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_tokenizers import CHATML_TOKENS, FAMILIES, Family, folder, write_folder
from temp_folders import new_folder
from tokenizers import Tokenizer

from sdpo_mlx.models.chat_template import load_chat

# Short templates with the operations that the families' own apply to contents.
TEMPLATES = {
    "qwen3": (
        "{%- set ns = namespace(last=messages|length - 1, open=true) %}"
        "{%- for m in messages[::-1] %}{%- set i = messages|length - 1 - loop.index0 %}"
        "{%- if ns.open and m.role == 'user' and not (m.content.startswith('<tool_response>')"
        " and m.content.endswith('</tool_response>')) %}{%- set ns.open = false %}{%- set ns.last = i %}{%- endif %}"
        "{%- endfor %}{%- for m in messages %}{%- set content = m.content %}{%- set thought = '' %}"
        "{%- if m.role == 'assistant' and '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- '<|im_start|>' + m.role + '\\n' }}"
        "{%- if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}"
        "{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}{%- endif %}"
        "{{- content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
    "qwen35": (
        "{%- macro shown(content) %}{%- if content is string %}{{- content }}{%- else %}"
        "{%- for item in content %}{{- item.text }}{%- endfor %}{%- endif %}{%- endmacro %}"
        "{%- for m in messages %}{%- set content = shown(m.content)|trim %}"
        "{%- if m.role == 'user' and content.startswith('<tool_response>') %}{{- '<|im_start|>tool\\n' }}"
        "{%- else %}{{- '<|im_start|>' ~ m.role ~ '\\n' }}{%- endif %}"
        "{%- if m.role == 'assistant' and '</think>' in content %}"
        "{%- set content = content.split('</think>')|last|trim %}{%- endif %}"
        "{{- content ~ '<|im_end|>' ~ '\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
    ),
    "smollm3": (
        "{%- set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{%- set mode = '/no_think' if '/no_think' in system else '/think' %}"
        "{%- set system = system.replace('/no_think', '').replace('/think', '').rstrip() %}"
        "{{- '<|im_start|>system\\nMode: ' ~ mode ~ '\\n' ~ system ~ '<|im_end|>\\n' }}"
        "{%- for m in messages if m.role != 'system' %}{%- if m.role == 'assistant' and mode == '/think' %}"
        "{{- '<|im_start|>assistant\\n' + m.content.lstrip('\\n') + '<|im_end|>\\n' }}{%- else %}"
        "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
        "{%- if mode == '/no_think' %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}{%- endif %}"
    ),
    "harmony": (
        "{%- for m in messages %}{%- if m.role == 'assistant' %}"
        "{%- if '<|channel|>analysis<|message|>' in m.content %}{{- raise_exception('no channels') }}{%- endif %}"
        "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- else %}"
        "{{- '<|start|>' + m.role + '<|message|>' + (m.content if m.role == 'user' else m.content|tojson) }}"
        "{{- '<|end|>' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}<|start|>assistant{% endif %}"
    ),
    "gemma4": (
        "{%- macro without_thought(text) %}{%- set ns = namespace(kept='') %}"
        "{%- for part in text.split('<channel|>') %}{%- if '<|channel>' in part %}"
        "{%- set ns.kept = ns.kept + part.split('<|channel>')[0] %}{%- else %}{%- set ns.kept = ns.kept + part %}"
        "{%- endif %}{%- endfor %}{{- ns.kept | trim }}{%- endmacro %}{{- bos_token }}"
        "{%- for m in messages %}{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{- '<|turn>' + role + '\\n' }}"
        "{{- without_thought(m['content']) if role == 'model' else m['content'] | trim }}"
        "{{- '<turn|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|turn>model\\n' }}{%- endif %}"
    ),
    "mistral": (
        "{{- bos_token }}{%- set rest = messages %}{%- if messages[0]['role'] == 'system' %}"
        "{{- '[SYSTEM_PROMPT]' + messages[0]['content'] + '[/SYSTEM_PROMPT]' }}{%- set rest = messages[1:] %}"
        "{%- endif %}{%- for m in rest %}{%- if m['role'] == 'user' %}"
        "{{- '[INST]' + m['content'].strip() + '[/INST]' }}{%- else %}"
        "{{- (m['content'] | trim) + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "lfm2": (
        "{{- bos_token -}}{%- set dict_of = {'user': '<|im_start|>user', 'system': '<|im_start|>system',"
        " 'assistant': '<|im_start|>assistant'} %}{%- for m in messages %}{{- dict_of[m.role] + '\\n' -}}"
        "{%- if m.role == 'assistant' and not loop.last and '</think>' in m.content %}"
        "{%- set content = m.content.split('</think>')[-1] | trim %}{%- else %}{%- set content = m.content %}"
        "{%- endif %}{{- content if content | length > 3 else content | upper }}{{- '<|im_end|>\\n' -}}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' -}}{%- endif %}"
    ),
    "granite": (
        "{%- for m in messages %}{%- set head = '<|start_of_role|>' ~ m.role ~ '<|end_of_role|>' %}"
        "{%- set words = m.content.split() %}{%- if words and words[0] == 'Hello' %}"
        "{%- set text = m.content | replace('Hello', 'hi', 1) | title %}{%- else %}"
        "{%- set text = m.content[:200] %}{%- endif %}"
        "{{- (head ~ text ~ '<|end_of_text|>\\n') | replace('  ', ' ') }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- ['<|start_of_role|>', 'assistant<|end_of_role|>'] | join('') }}{%- endif %}"
    ),
    "deepseek": (
        "{%- set ns = namespace(first='') %}{%- for m in messages if m['role'] == 'system' %}"
        "{%- set ns.first = ns.first + m['content'] + '\\n\\n' %}{%- endfor %}{{- bos_token + ns.first }}"
        "{%- for m in messages %}{%- if m['role'] == 'user' %}{{- '<｜User｜>' + m['content'] }}{%- endif %}"
        "{%- if m['role'] == 'assistant' %}{%- set content = m['content'] %}{%- if '</think>' in content %}"
        "{%- set content = content.split('</think>')[-1] %}{%- endif %}"
        "{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"
    ),
    "llama3": (
        "{%- for m in messages %}{%- set head = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' %}"
        "{%- set content = head + m['content'] | trim + '<|eot_id|>' %}"
        "{%- if loop.index0 == 0 %}{%- set content = bos_token + content %}{%- endif %}{{- content }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
    ),
    "phi4": FAMILIES["phi4"].template,
}
SPECIAL = (
    *CHATML_TOKENS,
    *("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|turn>", "<turn|>", "<bos>", "</s>"),
    *("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<｜User｜>", "<｜Assistant｜>"),
    *("<｜end▁of▁sentence｜>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<|user|>", "<|system|>", "<|assistant|>"),
)
PLAIN = ("<think>", "</think>", "<tool_response>", "</tool_response>", "<|channel>", "<channel|>")
INSPECTED = (*PLAIN, "/no_think", "/think", "Hello", "  ", "\n\n")
ROLES = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant"),
)
HARMLESS = st.lists(
    st.sampled_from(["/no_think", "/think", "Hello", " x", "\n", " ", "think>", "<", "|>", "[", "é", "ab ", "</"])
    | st.text(max_size=8),
    max_size=6,
).map("".join)
HOSTILE = st.lists(
    st.sampled_from([*SPECIAL, *INSPECTED, "x", "<|", "|>", "im_end", "user"]) | HARMLESS, max_size=6
).map("".join)
CONVERSATIONS = st.sampled_from(ROLES).flatmap(
    lambda roles: st.tuples(st.just(roles), st.lists(HARMLESS, min_size=len(roles), max_size=len(roles)))
)
HOSTILE_CONVERSATIONS = st.sampled_from(ROLES).flatmap(
    lambda roles: st.tuples(st.just(roles), st.lists(HOSTILE, min_size=len(roles), max_size=len(roles)))
)


@cache
def opened(name):
    """The chat of a template, and transformers' tokenizer."""
    from transformers import AutoTokenizer

    family = Family(TEMPLATES[name], SPECIAL, PLAIN, "<bos>", "</s>")
    path = new_folder(f"inspecting-{name}")
    tokenizer = Tokenizer.from_file(str(folder("tiny") / "tokenizer.json"))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens(list(PLAIN))
    write_folder(path, tokenizer, family)
    return load_chat(path), AutoTokenizer.from_pretrained(path)


def conversation(roles, contents):
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def own(chat, ids):
    return Counter(chat.reveal([i]) for i in map(int, ids) if i in chat.control_ids)


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@settings(max_examples=40, deadline=None)
@given(drawn=CONVERSATIONS, prompt=st.booleans())
@example((("user",), ["/no_think"]), True)
@example((("system", "user"), ["Be kind. /no_think", "Hello  x"]), True)
def test_contents_without_control_tokens_render_as_apply_chat_template(name, drawn, prompt):
    chat, reference = opened(name)
    messages = conversation(*drawn)
    if any(token in message["content"] for token in (*SPECIAL, *PLAIN) for message in messages):
        return
    expected = reference.apply_chat_template(
        messages, add_generation_prompt=prompt, enable_thinking=False, return_dict=False
    )
    assert chat.render(messages, generation_prompt=prompt).tolist() == expected


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"harmony"}))
@settings(max_examples=40, deadline=None)
@given(drawn=HOSTILE_CONVERSATIONS)
@example((("user", "assistant", "user"), ["q", "<think>a</think>\nb", "<tool_response>x</tool_response>"]))
@example((("user", "assistant", "user"), ["q", "<think>a<|im_end|></think>b</think><|im_start|>", "</think>"]))
def test_any_text_is_cut_as_the_template_cuts_it_and_adds_no_control_token(name, drawn):
    chat, reference = opened(name)
    messages = conversation(*drawn)
    ids = chat.render(messages)
    text = reference.apply_chat_template(messages, add_generation_prompt=True, enable_thinking=False, tokenize=False)
    assert chat.reveal(ids) == reference.decode(reference.encode(text, add_special_tokens=False))
    # The template's choices depend on the inspected strings alone, so without the others it writes the same tokens.
    for token in SPECIAL:
        messages = [{**m, "content": m["content"].replace(token, "x" * len(token))} for m in messages]
    assert own(chat, ids) == own(chat, chat.render(messages))


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"qwen3"}))
@settings(max_examples=30, deadline=None)
@given(drawn=HOSTILE_CONVERSATIONS)
def test_inspected_tokens_in_contents_stay_text(name, drawn):
    chat, _ = opened(name)
    roles, contents = drawn
    written = own(chat, chat.render(conversation(roles, contents)))
    benign = [own(chat, chat.render(conversation(roles, [text] * len(roles)))) for text in ("x", "/no_think x")]
    assert any(written == each for each in benign)


def test_thinking_that_a_template_writes_itself_keeps_its_control_tokens():
    chat, reference = opened("qwen3")
    messages = conversation(("user", "assistant"), ["q", "<think>\nwhy</think></think>\n\nb"])
    think = reference.convert_tokens_to_ids(["<think>", "</think>"])
    ids = chat.render(messages, generation_prompt=False).tolist()
    assert [i for i in ids if i in think] == think
    assert chat.reveal(ids).endswith("<think>\nwhy\n</think>\n\nb<|im_end|>\n")


def test_contents_that_a_template_refuses_are_rendered_as_text():
    chat, _ = opened("harmony")
    messages = conversation(("user", "assistant"), ["q", "a<|channel|>analysis<|message|>b"])
    ids = chat.render(messages, generation_prompt=False)
    assert "a<|channel|>analysis<|message|>b<|end|>" in chat.reveal(ids)
    assert own(chat, ids) == own(chat, chat.render(conversation(("user", "assistant"), "xx"), generation_prompt=False))


@pytest.mark.parametrize(
    "written", ["{{ '<|' + m.content + '|>' }}", "{{ m.content | lower }}", "{{ m.content ~ '|>' }}"]
)
@pytest.mark.parametrize("text", ["im_end", "<|IM_END|>", "<|im_end", "<|im_end|>"])
def test_control_token_that_the_template_completes_around_a_content_stays_text(written, text):
    template = f"{{% for m in messages %}}{written}{{% endfor %}}"
    path = new_folder("completing")
    tokenizer = Tokenizer.from_file(str(folder("tiny") / "tokenizer.json"))
    write_folder(path, tokenizer, dataclasses.replace(FAMILIES["tiny"], template=template))
    chat = load_chat(path)
    assert own(chat, chat.render([{"role": "user", "content": text}])) == Counter()
