"""Names of settings and commands in mlx-lm, TRL, PEFT and Unsloth, and suggestions for unknown names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from sdpo_mlx.config.keys import LEAVES, SECTIONS, children

# Key or section of this configuration -> its names in other trainers.
_SETTINGS = {
    "train.steps": ("iters", "max_steps"),
    "rollout.problems_per_step": ("batch_size", "per_device_train_batch_size"),
    "model.adapter.layers": ("num_layers", "lora_layers"),
    "model.adapter.kind": ("fine_tune_type",),
    "model.adapter": ("lora_parameters",),
    "model.adapter.rank": ("lora_rank", "lora_r"),
    "model.adapter.dropout": ("lora_dropout",),
    "model.adapter.keys": ("target_modules",),
    "train.learning_rate": ("lr",),
    "train.schedule": ("lr_schedule", "lr_scheduler_type"),
    "train.clip_norm": ("max_grad_norm",),
    "train.eval_every": ("steps_per_eval", "eval_steps"),
    "train.save_every": ("save_steps",),
    "eval.problems": ("val_batches",),
    "rollout.max_tokens": ("max_seq_length", "max_new_tokens", "max_completion_length"),
    "rollout.group_size": ("num_generations",),
    "train.updates_per_batch": ("num_iterations",),
    "rollout.temperature": ("temp",),
    "model.dtype": ("bf16",),
    "teacher.update_rate": ("ema", "ema_rate"),
    "train.grad_checkpoint": ("grad_checkpoint", "gradient_checkpointing"),
    "log.sinks": ("wandb", "report_to"),
}
SETTINGS: Mapping[str, str] = {theirs: ours for ours, names in _SETTINGS.items() for theirs in names}
# Settings of other trainers without an equal here -> what to do instead.
ADVICE: Mapping[str, str] = {
    "mask_prompt": "the loss covers rollouts only, never prompts: leave it out",
    "adapter_path": "the adapter is saved in the folder of --out: leave it out",
    "output_dir": "a run is saved in the folder of --out",
    "resume_adapter_file": "start from an adapter with --adapter DIR; resume a run with --out RUN --resume",
    "optimizer": "it is always AdamW: leave it out",
    "train": "`sdpo train` always trains: leave it out",
    "test": "use `sdpo eval`",
    "beta": "there is no KL penalty to the base: the teacher regularizes, set teacher.kind and teacher.update_rate",
    "lora_alpha": "set model.adapter.scale, which is alpha / rank",
    "load_in_4bit": "choose a 4-bit model, or with torch set model.bits=4",
    "gradient_accumulation_steps": "micro-batches are chosen to fit the memory: leave it out",
    "dataset": "pass your rows with --data",
    "reward_funcs": "write grade(problem, answer) in a file and pass it: --task ./my_task.py",
    **dict.fromkeys(
        ("epochs", "num_epochs", "num_train_epochs"), "runs are counted in steps, not epochs: set train.steps"
    ),
    **dict.fromkeys(
        ("steps_per_report", "logging_steps"), "every step is printed and logged to events.jsonl: leave it out"
    ),
}
# Command of ours -> its names in other tools.
_COMMANDS = {
    "sdpo train": ("lora", "finetune", "sft"),
    "sdpo train --objective grpo": ("grpo",),
    "sdpo chat": ("generate", "run"),
    "sdpo eval": ("evaluate", "test"),
    "sdpo export RUN --to fused": ("fuse", "merge"),
    "sdpo export": ("convert",),
    "sdpo push": ("upload",),
    "sdpo models fetch": ("download", "pull"),
    "sdpo models list": ("list",),
}
COMMANDS: Mapping[str, str] = {theirs: ours for ours, names in _COMMANDS.items() for theirs in names}


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
    # A section is not a key of another section that has the same name: --model is not judge.model.
    found = ADVICE.get(name) or SETTINGS.get(name) or (name if name in SECTIONS else leaves.get(name, ""))
    if found in SECTIONS:
        return f"Use a setting of {found}, such as --{next(key for key in LEAVES if key.startswith(f'{found}.'))}"
    if found not in LEAVES:
        return f"{found[:1].upper()}{found[1:]}"
    own = f"--{found.rpartition('.')[2].replace('_', '-')}"
    return f"Use {own if own in flags else f'--{found}'}"
