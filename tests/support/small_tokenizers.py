"""Small tokenizers with the chat frames of known model families, trained here in a moment.

The templates are short equivalents written from the families' documented frames. `folder(name)` gives a
model folder as `load_chat` takes it; each is built once per process and temp folder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from temp_folders import new_folder
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = (
    "system user assistant model developer tool\n\nYou are a helpful assistant. Cutting Knowledge Date:",
    "Write f(x): sort, reverse, behead\nx = sort.order(x)\nx = reverse.flip(x)\nx = behead.rest(x)\n",
    "Correct solution:\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n",
    "Correctly solve the original question. line 1: ok: x = sort.quick(x) AttributeError: no attribute 'roll'",
    "f([3, -1, 2, 2]) returned [2, 3], expected [1, 2] <start of turn> im_start im_end end_of_turn think",
    "end of text, begin of text, header id, eot id, tool call, start header id",
)


@dataclass(frozen=True)
class Family:
    """How one family writes a chat: its tokens, its template, and what its prompts begin and end with."""

    template: str
    special: tuple[str, ...]
    plain_added: tuple[str, ...] = ()  # added, but not flagged special: they show in decoded text
    bos: str | None = None
    eos: str = ""
    begins: str = ""
    ends: str = ""
    end_of_turn: str = ""
    kind: str = "byte_level"
    rstrip: bool = False


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% if tools %}"
    "{% set asked = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{{ '<|im_start|>system\n' + asked + '# Tools\n<tools>' }}"
    "{% for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}"
    "{{ '\n</tools>\nAnswer with <tool_call>\n{\"name\": ...}\n</tool_call><|im_end|>\n' }}{% endif %}"
    "{% for m in messages if not (tools and m.role == 'system') %}"
    "{% set text = m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content %}"
    "{{ '<|im_start|>' + m.role + '\n' + text + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% set asked = messages[0].content | trim if messages[0].role == 'system' else '' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
    "{{ asked + '<|eot_id|>' }}"
    "{% for m in messages if m.role != 'system' %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{% if tools and loop.first %}{% for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{% endfor %}{% endif %}"
    "{{ (m.content | trim) + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% set first = messages[0].content + '\n\n' if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ (first if loop.first else '') + (m.content | trim) + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA2 = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + GEMMA3
SMOLLM2 = (
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}" + CHATML
)
PHI4 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
PHI_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
GEMMA_PLAIN = ("\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581\u2581", "<table>")

FAMILIES = {
    "tiny": Family(
        CHATML, CHATML_TOKENS, (), None, "<|im_end|>", "<|im_start|>", "<|im_start|>assistant\n", "<|im_end|>"
    ),
    "qwen3": Family(
        QWEN3,
        CHATML_TOKENS,
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        None,
        "<|im_end|>",
        "<|im_start|>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|im_end|>",
    ),
    "llama3": Family(
        LLAMA3,
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
        ),
        (),
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|eot_id|>",
    ),
    "gemma3": Family(
        GEMMA3,
        GEMMA_TOKENS,
        GEMMA_PLAIN,
        "<bos>",
        "<eos>",
        "<bos><start_of_turn>user\n",
        "<start_of_turn>model\n",
        "<end_of_turn>",
        "sentencepiece",
    ),
    "gemma2": Family(
        GEMMA2,
        GEMMA_TOKENS,
        GEMMA_PLAIN,
        "<bos>",
        "<eos>",
        "<bos><start_of_turn>user\n",
        "<start_of_turn>model\n",
        "<end_of_turn>",
        "sentencepiece",
    ),
    "smollm2": Family(
        SMOLLM2, CHATML_TOKENS, (), None, "<|im_end|>", "<|im_start|>system\n", "<|im_start|>assistant\n", "<|im_end|>"
    ),
    "phi4": Family(PHI4, PHI_TOKENS, (), None, "<|endoftext|>", "<|", "<|assistant|>", "<|end|>"),
    "phi3_rstrip": Family(
        PHI4.replace("'|>'", "'|>\n'"),
        PHI_TOKENS,
        (),
        None,
        "<|endoftext|>",
        "<|",
        "<|assistant|>",
        "<|end|>",
        rstrip=True,
    ),
    "metaspace_first": Family(
        CHATML,
        (*GEMMA_TOKENS, *CHATML_TOKENS),
        (),
        None,
        "<|im_end|>",
        "<|im_start|>",
        "assistant\n",
        "<|im_end|>",
        "metaspace",
    ),
}


@cache
def folder(name: str) -> Path:
    """A model folder with the tokenizer, template and configs of one family."""
    family = FAMILIES[name]
    path = new_folder(name)
    tokenizer = _byte_level(family) if family.kind == "byte_level" else _sentencepiece(family)
    return write_folder(path, tokenizer, family)


def write_folder(path: Path, tokenizer: Tokenizer, family: Family) -> Path:
    """Lay a model folder (without weights) into `path`."""
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": family.eos}
    config |= {"bos_token": family.bos} if family.bos else {}
    config |= {"chat_template": family.template} if family.template else {}
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    end = tokenizer.token_to_id(family.eos)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": end}), encoding="utf-8")
    return path


def _byte_level(family: Family) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if family.bos:
        tokenizer.add_special_tokens([family.bos])
        bos = (family.bos, tokenizer.token_to_id(family.bos))
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=[bos])
    return _with_added(tokenizer, family)


def _sentencepiece(family: Family) -> Tokenizer:
    """BPE over text with U+2581 for spaces and bytes as a fallback; control tokens stand in its own vocabulary."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "\u2581")
    pieces = trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=list(family.special))
    trained.train_from_iterator(CORPUS, pieces)
    learned = json.loads(trained.to_str())["model"]
    extra = [f"<0x{byte:02X}>" for byte in range(256)] + ["\n", *GEMMA_PLAIN, "<", ">", "turn>", "<end_of_"]
    names = list(learned["vocab"]) + [piece for piece in extra if piece not in learned["vocab"]]
    merges = [tuple(merge) for merge in learned["merges"]]
    # Converted SentencePiece vocabularies have merges that lead to control tokens too; so does this one.
    merges += [("\n", "\n"), ("\n\n", "\n"), ("\u2581", "\u2581"), ("\u2581\u2581", "\u2581\u2581")]
    merges += [("<end_of_", "turn>")] if "<end_of_turn>" in names else []
    vocabulary = {piece: i for i, piece in enumerate(names)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    if family.kind == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_added(tokenizer, family)


def _with_added(tokenizer: Tokenizer, family: Family) -> Tokenizer:
    flags = {"normalized": False, "rstrip": family.rstrip}
    tokenizer.add_special_tokens([AddedToken(content, special=True, **flags) for content in family.special])
    tokenizer.add_tokens([AddedToken(content, special=False, normalized=False) for content in family.plain_added])
    return tokenizer
