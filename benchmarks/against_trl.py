"""Compare one SDPO step with TRL's SDPOTrainer: same weights, prompts, feedback and lengths, alternating.

`python benchmarks/against_trl.py --trl PYTHON --model FOLDER`; PYTHON is an interpreter of an environment with
`torch trl peft datasets`. Each side is a process of its own and makes STEPS steps: sample every rollout to exactly
TOKENS tokens, distil from the self-teacher that sees the feedback (top 100 with tail, alpha 0.5, EMA), one AdamW step
on LoRA factors of rank 16. The first step is not counted. Peak memory is the process's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reporting import markdown_table, peak_resident

PROBLEMS, GROUP, TOKENS, STEPS = 2, 4, 96, 4
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
FEEDBACK = (
    "Test 1 of 6 failed.\nInput: [3, 1, 2]\nExpected: [1, 2, 3]\nGot: None\nThe function returned None: "
    "it changes the list in place and does not return it. Return the sorted list."
)
TASK = "Write a Python function solve(xs) that returns the list of numbers xs sorted, without calling sorted. Variant "
SIDES = {"sdpo-mlx on MLX": "mlx", "sdpo-mlx on PyTorch": "torch", "TRL": "trl", "TRL, no recomputation": "trl-keep"}


def main() -> None:
    """Run the sides alternately; print seconds per step, peak memory, and both as ratios to TRL."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl", required=True, help="interpreter of TRL's environment")
    parser.add_argument("--model", required=True, type=Path, help="folder of a Hugging Face model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=list(SIDES.values()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        seconds = of_trl(options.model, options.side) if options.side.startswith("trl") else of_ours(options)
        print(json.dumps({"seconds": seconds[1:], "peak": peak_resident()}))
        return
    found: dict[str, list[dict[str, Any]]] = {label: [] for label in SIDES}
    for _ in range(options.rounds):
        for label, side in SIDES.items():
            found[label].append(_measured(options, side))
            print(label, found[label][-1], file=sys.stderr, flush=True)
    print(_table(found, options.threads))


def _measured(options: Any, side: str) -> dict[str, Any]:
    python = options.trl if side.startswith("trl") else sys.executable
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    command = [python, __file__, "--trl", options.trl, "--model", str(options.model), "--side", side]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _table(found: dict[str, list[dict[str, Any]]], threads: int) -> str:
    step = {label: statistics.median(s for each in rows for s in each["seconds"]) for label, rows in found.items()}
    peak = {label: max(each["peak"] for each in rows) for label, rows in found.items()}
    rows = [
        [
            label,
            f"{step[label]:.1f}",
            f"{peak[label] / 2**30:.2f} GiB",
            f"{step[label] / step['TRL']:.2f}",
            f"{peak[label] / peak['TRL']:.2f}",
        ]
        for label in found
    ]
    work = f"threads: {threads}, {PROBLEMS} x {GROUP} rollouts of {TOKENS} tokens"
    table = markdown_table(["", "s per step", "peak memory", "time / TRL", "memory / TRL"], rows)
    return f"{platform.system()} {platform.machine()}, {work}\n\n{table}"


def _prompts() -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"{TASK}{number}."}] for number in range(PROBLEMS)]


def of_ours(options: Any) -> list[float]:
    """Return the seconds of each step on one of our backends."""
    from sdpo_mlx.backends.base import SamplingParams
    from sdpo_mlx.backends.registry import open_policy
    from sdpo_mlx.config import AdapterConfig, ModelConfig, ObjectiveConfig, TeacherConfig, TrainConfig
    from sdpo_mlx.models.chat_template import load_chat
    from sdpo_mlx.rl.distillation import distillation_batch
    from sdpo_mlx.types import Feedback, Problem, Rollout, RolloutGroup

    model = ModelConfig(
        name=options.model.name,
        backend=options.side,
        device="cpu",
        dtype="float32",
        adapter=AdapterConfig(rank=16, keys=[*(f"self_attn.{k}" for k in ATTENTION), *(f"mlp.{k}" for k in MLP)]),
    )
    teacher, objective = TeacherConfig(), ObjectiveConfig()
    policy, chat = open_policy(options.model, model, teacher, TrainConfig()), load_chat(options.model)
    sampling = SamplingParams(TOKENS, 1.0, 1.0, frozenset())  # no end token: all rollouts have the same length
    problems = [Problem(str(i), tuple(prompt)) for i, prompt in enumerate(_prompts())]  # type: ignore[arg-type]
    prompts = [chat.render(problem.messages) for problem in problems]
    feedback = Feedback(0.0, False, FEEDBACK, "wrong")
    seconds = []
    for step in range(STEPS):
        begun = time.perf_counter()
        seeds = [[1_000 * step + 100 * at + n for n in range(GROUP)] for at in range(PROBLEMS)]
        answers = {(at, n): found for at, n, found in policy.generate(prompts, sampling, seeds)}
        rollouts = [
            tuple(
                Rollout(prompts[at], a.ids_T, a.logps_T, "stop", seeds[at][n], chat.decode(a.ids_T))
                for n, a in ((n, answers[at, n]) for n in range(GROUP))
            )
            for at in range(PROBLEMS)
        ]
        groups = [RolloutGroup(p, rows, (feedback,) * GROUP) for p, rows in zip(problems, rollouts, strict=True)]
        batch = distillation_batch(groups, chat, teacher, objective, context_length=8_192, seed=step)
        update = policy.learn(batch.samples, objective, 1e-5)
        policy.update_teacher(teacher)
        assert update.applied
        assert update.tokens == PROBLEMS * GROUP * TOKENS
        seconds.append(time.perf_counter() - begun)
    return seconds


def of_trl(model: Path, side: str) -> list[float]:
    """Return the seconds of each step of TRL."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Measure the seconds of each optimizer step, sampling included."""

        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.begun)

    rows = [{"prompt": prompt, "privileged_context": FEEDBACK} for prompt in _prompts()]
    clock = Clock()
    with TemporaryDirectory() as folder:
        config = SDPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            model_init_kwargs={"dtype": "float32"},
            gradient_checkpointing=side == "trl",
            per_device_train_batch_size=PROBLEMS * GROUP,
            gradient_accumulation_steps=1,
            num_generations=GROUP,
            max_completion_length=TOKENS,
            generation_kwargs={"min_new_tokens": TOKENS},
            include_environment_feedback=True,
            distillation_mode="topk_logits",
            distillation_topk=100,
            distillation_alpha=0.5,
            distillation_add_tail=True,
            distillation_weight=1.0,
            max_steps=STEPS,
            learning_rate=1e-5,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            disable_tqdm=True,
        )
        trainer = SDPOTrainer(
            model=str(model),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=[*ATTENTION, *MLP], task_type="CAUSAL_LM"),
            callbacks=[clock],
        )
        trainer.train()
        for entry in trainer.state.log_history[:STEPS]:
            assert float(entry["completions/mean_length"]) == TOKENS
            assert float(entry["self_distillation/reprompt_sample_fraction"]) == 1.0
    return clock.seconds


if __name__ == "__main__":
    main()
