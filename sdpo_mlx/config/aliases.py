"""Names of settings and commands in mlx-lm, TRL, PEFT and Unsloth, and suggestions for unknown names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from types import MappingProxyType

from sdpo_mlx.config.keys import LEAVES, SECTIONS, children

# Setting of another trainer -> key or section of this configuration.
SETTINGS: Mapping[str, str] = MappingProxyType(
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
_NO_EPOCHS = "runs are counted in steps, not epochs: set train.steps"
_EVERY_STEP = "every step is printed and logged to events.jsonl: leave it out"
# Settings of other trainers without an equal here -> what to do instead.
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "mask_prompt": "the loss covers rollouts only, never prompts: leave it out",
        "adapter_path": "the adapter is saved in the folder of --out: leave it out",
        "output_dir": "a run is saved in the folder of --out",
        "resume_adapter_file": "resume a run from its folder: --out RUN --resume; to start from another adapter, "
        "fuse it (`sdpo export RUN --to fused`) and use that folder as --model",
        "optimizer": "it is always AdamW: leave it out",
        "train": "`sdpo train` always trains: leave it out",
        "test": "use `sdpo eval`",
        "beta": "there is no KL penalty to the base: the teacher regularizes, set teacher.kind and teacher.update_rate",
        "epochs": _NO_EPOCHS,
        "num_epochs": _NO_EPOCHS,
        "num_train_epochs": _NO_EPOCHS,
        "lora_alpha": "set model.adapter.scale, which is alpha / rank",
        "load_in_4bit": "choose a 4-bit model, or with torch set model.bits=4",
        "gradient_accumulation_steps": "micro-batches are chosen to fit the memory: leave it out",
        "steps_per_report": _EVERY_STEP,
        "logging_steps": _EVERY_STEP,
        "dataset": "pass your rows with --data",
        "reward_funcs": "write grade(problem, answer) in a file and pass it: --task ./my_task.py",
    }
)
# Command of another tool -> command of ours.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "lora": "sdpo train",
        "finetune": "sdpo train",
        "sft": "sdpo train",
        "grpo": "sdpo train --objective grpo",
        "generate": "sdpo chat",
        "run": "sdpo chat",
        "evaluate": "sdpo eval",
        "test": "sdpo eval",
        "fuse": "sdpo export RUN --to fused",
        "merge": "sdpo export RUN --to fused",
        "convert": "sdpo export",
        "upload": "sdpo push",
        "download": "sdpo models fetch",
        "pull": "sdpo models fetch",
        "list": "sdpo models list",
    }
)


def suggestion(section: str, name: str) -> str:
    """Suggest what an unknown name in a section was meant to be, or list the names of the section.

    The section's own names go first, then names of other sections, then those of other trainers.
    """
    own = children(section)
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(tuple(LEAVES)) if key.rpartition(".")[0] != section}
    if near := get_close_matches(name, own, 1, 0.8):
        return f"did you mean {near[0]}?"
    if name in ADVICE:
        return ADVICE[name]
    if target := SETTINGS.get(name) or elsewhere.get(name):
        return f"did you mean {target}?"
    if near := get_close_matches(name, own, 1, 0.6):
        return f"did you mean {near[0]}?"
    if near := get_close_matches(name, [*elsewhere, *SETTINGS], 1, 0.8):
        return suggestion(section, near[0])
    return f"unknown; known here: {', '.join(own)}"


def option_advice(option: str, flags: Collection[str]) -> str:
    """Return a suggestion for an unknown option of a command with these flags and `--set`; blank if there is none."""
    if option == "--adapter-path" and "--adapter" in flags:  # commands that read an adapter; `sdpo train` writes one
        return "Use --adapter"
    name = option.lstrip("-").replace("-", "_")
    leaves = {key.rpartition(".")[2]: key for key in reversed(tuple(LEAVES))}
    found = ADVICE.get(name) or SETTINGS.get(name) or leaves.get(name, "")
    if found in SECTIONS:
        return f"Use a setting of {found}, such as --{next(key for key in LEAVES if key.startswith(f'{found}.'))}"
    if found not in LEAVES:
        return f"{found[:1].upper()}{found[1:]}"
    own = f"--{found.rpartition('.')[2].replace('_', '-')}"
    return f"Use {own if own in flags else f'--{found}'}"
