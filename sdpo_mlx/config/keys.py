"""The keys of the configuration: what each one wants, and which one a typo was meant to be.

Everything here is read off `config.Config`; nothing is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from sdpo_mlx.config.schema import Config

# Names that people bring along from mlx-lm, TRL, PEFT and Unsloth; the value is ours.
FOREIGN: Mapping[str, str] = MappingProxyType(
    {
        "iters": "train.steps",
        "max_steps": "train.steps",
        "batch_size": "rollout.problems_per_step",
        "per_device_train_batch_size": "rollout.problems_per_step",
        "num_layers": "model.adapter.layers",
        "lora_layers": "model.adapter.layers",
        "fine_tune_type": "model.adapter.kind",
        "lora_parameters": "model.adapter",
        "lora_rank": "model.adapter.rank",
        "lora_r": "model.adapter.rank",
        "lora_dropout": "model.adapter.dropout",
        "target_modules": "model.adapter.keys",
        "lr": "train.learning_rate",
        "lr_schedule": "train.schedule",
        "lr_scheduler_type": "train.schedule",
        "max_grad_norm": "train.clip_norm",
        "steps_per_eval": "train.eval_every",
        "eval_steps": "train.eval_every",
        "save_steps": "train.save_every",
        "val_batches": "eval.problems",
        "max_seq_length": "rollout.max_tokens",
        "max_new_tokens": "rollout.max_tokens",
        "max_completion_length": "rollout.max_tokens",
        "num_generations": "rollout.group_size",
        "num_iterations": "train.updates_per_batch",
        "temp": "rollout.temperature",
        "bf16": "model.dtype",
        "ema": "teacher.update_rate",
        "ema_rate": "teacher.update_rate",
        "grad_checkpoint": "train.grad_checkpoint",
        "gradient_checkpointing": "train.grad_checkpoint",
        "wandb": "log.sinks",
        "report_to": "log.sinks",
    }
)
_NO_EPOCHS = "a run counts steps, not epochs: set train.steps"
_EVERY_STEP = "every step is shown and written to events.jsonl, leave it out"
# What to do about the foreign names that stand for nothing in the tree.
ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "mask_prompt": "only answers are ever learned from, leave it out",
        "adapter_path": "the adapter goes where --out says, leave it out",
        "output_dir": "the run goes where --out says",
        "resume_adapter_file": "a run goes on from its own folder: --out RUN --resume; to begin from another adapter, "
        "fuse it (`sdpo export RUN --to fused`) and name that folder as --model",
        "optimizer": "it is always AdamW, leave it out",
        "train": "`sdpo train` always trains, leave it out",
        "test": "use `sdpo eval`, leave it out",
        "beta": "there is no KL penalty to the start: the teacher holds the student, set teacher.kind and "
        "teacher.update_rate",
        "epochs": _NO_EPOCHS,
        "num_epochs": _NO_EPOCHS,
        "num_train_epochs": _NO_EPOCHS,
        "lora_alpha": "set model.adapter.scale, which is alpha / rank",
        "load_in_4bit": "name a 4-bit model, or on torch set model.bits=4",
        "gradient_accumulation_steps": "micro-batches are chosen to fit the memory, leave it out",
        "steps_per_report": _EVERY_STEP,
        "logging_steps": _EVERY_STEP,
        "dataset": "name your rows with --data",
        "reward_funcs": "write grade(problem, answer) in a file and name it: --task ./my_task.py",
    }
)


def _walk(node: dict[str, Any], definitions: dict[str, Any], prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, schema in node["properties"].items():
        if "$ref" in schema:
            yield from _walk(definitions[schema["$ref"].rpartition("/")[2]], definitions, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", schema


def _leaves() -> Mapping[str, dict[str, Any]]:
    schema = Config.model_json_schema()
    return MappingProxyType(dict(_walk(schema, schema["$defs"], "")))


LEAVES = _leaves()  # dotted key -> its JSON Schema, in the order of the tree
SECTIONS = frozenset(key.rsplit(".", depth)[0] for key in LEAVES for depth in range(1, key.count(".") + 1))


def children(section: str) -> tuple[str, ...]:
    """The names right below a section, in order; the empty section is the top."""
    prefix = f"{section}." if section else ""
    below = (key[len(prefix) :].partition(".")[0] for key in LEAVES if key.startswith(prefix))
    return tuple(dict.fromkeys(below))


def options(key: str) -> list[dict[str, Any]]:
    """The schemas of which a value has to meet one."""
    schema = LEAVES[key]
    return list(schema.get("anyOf", [schema]))


def choices(key: str) -> tuple[str, ...]:
    """The words that a key allows; empty where it isn't a choice between words."""
    words = (word for option in options(key) for word in option.get("enum", [option.get("const")]))
    return tuple(word for word in words if isinstance(word, str))


def members(key: str) -> tuple[str, ...]:
    """The words that a list may hold; empty where it may hold any text."""
    return tuple(word for option in options(key) for word in option.get("items", {}).get("enum", ()))


def takes(key: str, kind: str) -> bool:
    """Whether values of this JSON type (`string`, `number`, `integer`, `null`, ...) are allowed."""
    return any(option.get("type") == kind for option in options(key))


def wants(key: str) -> str:
    """What a key allows, in words: `a whole number above 0, or null`."""
    return ", or ".join(_in_words(option) for option in options(key))


def _in_words(option: dict[str, Any]) -> str:
    if "enum" in option:
        return "one of " + ", ".join(map(str, option["enum"]))
    if words := option.get("items", {}).get("enum"):
        return "a list of " + ", ".join(words)
    if "const" in option:
        return str(option["const"])
    kinds = {
        "integer": "a whole number",
        "number": "a number",
        "boolean": "true or false",
        "string": "text",
        "array": "a list of texts",
        "null": "null",
    }
    limits = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    bounds = [f"{words} {option[limit]:g}" for limit, words in limits.items() if limit in option]
    kind = "text that isn't empty" if option.get("minLength") else kinds.get(option.get("type", ""), "another value")
    return " ".join([kind, " and ".join(bounds)]).rstrip()


def brought_along(name: str) -> str:
    """What to do about a name of mlx-lm, TRL, PEFT or Unsloth; empty where none of them has it."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    leaves = {key.rpartition(".")[2]: key for key in reversed(tuple(LEAVES))}
    return FOREIGN.get(name) or leaves.get(name, "")


def suggestion(section: str, name: str) -> str:
    """What someone meant who wrote an unknown name in a section: a question, or what is known there.

    The section's own names go first, then names of other sections, then those of other trainers.
    """
    own = children(section)
    others = [key for key in LEAVES if key.rpartition(".")[0] != section]
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(others)}
    if near := get_close_matches(name, own, 1, 0.8):
        return f"did you mean {near[0]}?"
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    if target := FOREIGN.get(name) or elsewhere.get(name):
        return f"did you mean {target}?"
    if near := get_close_matches(name, own, 1, 0.6):
        return f"did you mean {near[0]}?"
    if near := get_close_matches(name, [*elsewhere, *FOREIGN], 1, 0.8):
        return suggestion(section, near[0])
    return f"not known; known here: {', '.join(own)}"
