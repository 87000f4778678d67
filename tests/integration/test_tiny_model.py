"""The embedded model's folder: other libraries load it, any text encodes, and it is small."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

FOLDER = Path(str(files("sdpo_mlx") / "assets" / "tiny"))
FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write f(x): sort, reverse"}]


@cache
def tokenizer():
    """The tokenizer as transformers loads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER)


@cache
def loaded():
    """Model and tokenizer as mlx-lm loads them, in float32."""
    from sdpo_mlx.backends.mlx.blas import load_blas

    load_blas()
    import mlx.core as mx
    from mlx_lm import load

    model, wrapped = load(str(FOLDER))
    model.set_dtype(mx.float32)
    return model, wrapped


def test_the_folder_is_complete_and_under_three_megabytes():
    present = {p.name: p.stat().st_size for p in FOLDER.iterdir()}
    assert set(present) == FILES
    assert sum(present.values()) < 3 * 2**20


def test_transformers_reads_the_configuration():
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(FOLDER)
    assert (config.model_type, config.architectures) == ("qwen3", ["Qwen3ForCausalLM"])
    assert config.vocab_size == len(tokenizer())
    assert config.eos_token_id == tokenizer().eos_token_id


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="transformers computes with torch only")
def test_transformers_and_mlx_agree_on_the_logits():
    import mlx.core as mx
    import torch
    from transformers import AutoModelForCausalLM

    model, _ = loaded()
    ids = tokenizer().apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    theirs = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)(torch.tensor([ids])).logits
    ours = np.array(model(mx.array([ids])))
    assert np.abs(ours - theirs.detach().numpy()).max() < 1e-3


def test_the_safetensors_file_holds_the_names_that_transformers_expects():
    header = (FOLDER / "model.safetensors").read_bytes()
    size = int.from_bytes(header[:8], "little")
    tensors = json.loads(header[8 : 8 + size])
    assert tensors.pop("__metadata__") == {"format": "pt"}
    assert {t["dtype"] for t in tensors.values()} == {"F16"}
    assert tensors["model.embed_tokens.weight"]["shape"] == [640, 96]
    assert "model.layers.2.self_attn.k_norm.weight" in tensors
    assert "lm_head.weight" not in tensors


def test_chat_template_renders_every_role_in_order():
    text = tokenizer().apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWrite f(x): sort, reverse<|im_end|>\n<|im_start|>assistant\n"
    )


def test_end_of_turn_ends_generation_in_both_libraries():
    assert tokenizer().eos_token == "<|im_end|>"
    assert tokenizer().pad_token == "<|endoftext|>"
    assert loaded()[1].eos_token_ids == {tokenizer().eos_token_id}


def test_an_answer_line_takes_six_tokens():
    assert len(tokenizer().encode("x = rotate.shift(x)\nx = cumsum.running(x)\n")) == 12


@given(st.text(max_size=80))
def test_any_text_encodes_and_comes_back(text):
    ids = tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer().decode(ids) == text


@pytest.mark.parametrize(
    "text", ["naïve – 日本語 🤗 \u202e", "\x00\r\n\t  \n", "  two  spaces , and .", "don't 's 12345"]
)
def test_awkward_text_comes_back_unchanged(text):
    assert tokenizer().decode(tokenizer().encode(text, add_special_tokens=False)) == text


def test_with_a_solution_in_context_the_greedy_answer_is_that_solution():
    from mlx_lm import generate

    from sdpo_mlx.config import TeacherConfig
    from sdpo_mlx.tasks.tiny.library import solution
    from sdpo_mlx.tasks.tiny.task import TinyTask
    from sdpo_mlx.teacher import teacher_messages

    model, wrapped = loaded()
    task = TinyTask()
    problems = task.problems("held_out")[:8]
    answers = []
    for problem in problems:
        shown = solution(problem.private["operations"])
        messages = teacher_messages(problem.messages, shown, None, None, TeacherConfig())
        prompt = wrapped.apply_chat_template(list(messages), add_generation_prompt=True)
        answers.append(generate(model, wrapped, prompt, max_tokens=64))
    assert sum(task.grade(p, a).success for p, a in zip(problems, answers, strict=True)) >= 7
