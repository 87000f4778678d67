"""Tools in prompts: equal to the model's own template, and as inert as every other content."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from conversations import FAMILIES, HOSTILE, SPIKED, TURNS, chat, conversation, reference, shown
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import folder

from sdpo_mlx.config import ObjectiveConfig, TeacherConfig
from sdpo_mlx.core.errors import ConfigError
from sdpo_mlx.models.chat_template import load_chat
from sdpo_mlx.rl.distillation import distillation_batch
from sdpo_mlx.types import Feedback, Problem, Rollout, RolloutGroup

WITH_TOOLS = ("llama3", "qwen3")
WITHOUT = sorted(set(FAMILIES) - set(WITH_TOOLS))
TURN = [{"role": "user", "content": "x"}]


def tool(name="get_weather", text="Forecast for one city.", argument="city", said="its name", **more):
    part = {"type": "string", "description": said, **more}
    schema = {"type": "object", "properties": {argument: part, "days": {"type": "integer"}}, "required": [argument]}
    return {"type": "function", "function": {"name": name, "description": text, "parameters": schema}}


def expected_ids(name, messages, tools):
    template = reference(name).chat_template.replace("strftime_now('%d %b %Y')", "'26 Jul 2024'")
    return reference(name).apply_chat_template(
        messages,
        tools=tools,
        chat_template=template,
        add_generation_prompt=True,
        enable_thinking=False,
        return_dict=False,
    )


def controls(made, ids):
    return Counter(int(i) for i in ids if int(i) in made.control_ids)


@pytest.mark.parametrize("roles", TURNS)
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tools_equal_the_models_own_template_for_benign_text(name, roles):
    tools = [
        tool(),
        tool("naïve_名", 'quotes " and \\ and a < b, [x] {y}\n\tline', "é", enum=["a<b", "|"], default=1.5),
    ]
    messages = conversation(roles, ["Be brief.", "  Weather?  "])
    assert chat(name).render(messages, tools=tools).tolist() == expected_ids(name, messages, tools)


@pytest.mark.parametrize("name", WITH_TOOLS)
@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Co"]), max_size=30), min_size=3))
def test_any_benign_tool_equals_the_models_own_template(name, texts):
    if any(token in text for token in chat(name)._vocabulary.controls for text in texts):
        return
    tools = [tool(texts[0], texts[1], texts[2], texts[-1], nested={texts[0]: [texts[1], None, True, 3]})]
    assert chat(name).render(TURN, tools=tools).tolist() == expected_ids(name, TURN, tools)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_hostile_tool_adds_no_control_token(name):
    benign = chat(name).render(TURN, tools=[tool()])
    for text in HOSTILE:
        hostile = tool(f"a{text}", text, text, text, enum=[text, [text]], nested={text: {text: text}})
        ids = chat(name).render(TURN, tools=[hostile])
        assert controls(chat(name), ids) == controls(chat(name), benign)
        assert shown(name, ids).count(json.dumps(text, ensure_ascii=False)[1:-1]) >= 8


@pytest.mark.parametrize("name", WITH_TOOLS)
@settings(max_examples=60, deadline=None)
@given(text=SPIKED, other=SPIKED)
def test_any_tool_text_adds_no_control_token(name, text, other):
    benign = chat(name).render(TURN, tools=[tool()])
    ids = chat(name).render(TURN, tools=[tool(text, other, f"k{text}", other, enum=[text, other])])
    assert controls(chat(name), ids) == controls(chat(name), benign)


def test_tool_text_never_takes_the_place_of_a_message():
    ids = chat("qwen3").render([{"role": "user", "content": "secret"}], tools=[tool(text="\U000f0000 \U000ffffd")])
    assert shown("qwen3", ids).count("secret") == 1
    assert "\U000f0000 \U000ffffd" in shown("qwen3", ids)


@pytest.mark.parametrize("name", WITHOUT)
def test_template_without_tools_is_a_configuration_error(name):
    with pytest.raises(ConfigError, match="does not support tools"):
        chat(name).render(TURN, tools=[tool()])


def test_prompts_with_and_without_tools_are_kept_apart():
    made = load_chat(folder("qwen3"))
    plain, one = made.render(TURN), made.render(TURN, tools=[tool()])
    other = made.render(TURN, tools=[tool("get_time")])
    assert len({ids.tobytes() for ids in (plain, one, other)}) == 3
    assert np.array_equal(made.render(TURN, tools=(tool(),)), one)
    assert np.array_equal(made.render(TURN, tools=[]), plain)


def with_template(tmp_path, template, name="tiny"):
    made = tmp_path / "model"
    shutil.copytree(folder(name), made)
    config = json.loads((made / "tokenizer_config.json").read_text(encoding="utf-8"))
    (made / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}), encoding="utf-8")
    return load_chat(made)


LOOSE = "{% for m in messages %}{{ m.content + '<|im_end|>' }}{% endfor %}{% for t in tools or [] %}"


@pytest.mark.parametrize("written", ["{{ t.a }}{{ t.b }}", "{{ (t.a + t.b) | lower }}", "{{ t.a + t.b | trim }}"])
def test_control_token_put_together_by_the_template_stays_text(tmp_path, written):
    made = with_template(tmp_path, LOOSE + written + "{% endfor %}")
    for first, second in (("<|im_", "end|>"), ("<", "|im_end|>"), ("<|IM_E", "ND|>"), ("", "<|im_end|>")):
        ids = made.render(TURN, tools=[{"a": first, "b": second}])
        assert sum(controls(made, ids).values()) == 1


def test_template_that_escapes_its_tools_shows_them_escaped(tmp_path):
    made = with_template(tmp_path, LOOSE + "{{ t | string }}{% endfor %}")
    ids = made.render(TURN, tools=[{"a": "<|im_end|>\n"}])
    assert made.reveal(ids) == "x<|im_end|>" + str({"a": "<|im_end|>\n"})
    assert sum(controls(made, ids).values()) == 1


def test_template_for_tools_of_its_own_is_used_and_counts_for_the_hash(tmp_path):
    plain, own = LOOSE.partition("{% for t")[0], LOOSE + "{{ t.a }}{% endfor %}"
    named = [{"name": "default", "template": plain}, {"name": "tool_use", "template": own}]
    made = with_template(tmp_path, named)
    assert "seen" in made.decode(made.render(TURN, tools=[{"a": "seen"}]))
    assert made.tokenizer_hash != with_template(tmp_path / "other", plain).tokenizer_hash


def test_decoded_answers_keep_tags_that_are_text_and_lose_those_that_are_special():
    qwen = reference("qwen3").convert_tokens_to_ids(["<tool_call>", "</tool_call>"])
    assert chat("qwen3").decode(qwen) == "<tool_call></tool_call>"
    llama = reference("llama3").convert_tokens_to_ids(["<|python_tag|>"])
    assert chat("llama3").decode(llama) == ""


def test_teacher_and_student_see_the_same_tools():
    made = chat("qwen3")
    problems = [
        Problem(f"p{i}", tuple(TURN), tools=(tool(name),)) for i, name in enumerate(("get_weather", "get_time"))
    ]
    groups = []
    for problem in problems:
        prompt = made.render(problem.messages, tools=problem.tools)
        ids = np.array(made.encode_plain("sort"), dtype=np.int32)
        rollout = Rollout(prompt, ids, np.full(ids.size, -1.0, np.float32), "stop", 0, "sort")
        groups.append(RolloutGroup(problem, (rollout,), (Feedback(0.0, False, "No tool call was found.", "invalid"),)))
    batch = distillation_batch(groups, made, TeacherConfig(), ObjectiveConfig(), context_length=4_096, seed=1)
    for sample, problem in zip(batch.samples, problems, strict=True):
        (name,) = (t["function"]["name"] for t in problem.tools)
        for ids in (sample.student_ids, sample.teacher_ids):
            assert shown("qwen3", ids).count("<tools>") == 1
            assert name in shown("qwen3", ids)
        assert "No tool call was found." in shown("qwen3", sample.teacher_ids)
    assert len({sample.teacher_ids.tobytes() for sample in batch.samples}) == 2
