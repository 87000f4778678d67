"""Every setting, its default and its meaning; help, docs and the JSON Schema are made from this file.

Defaults are the paper's (arXiv 2601.20802, its table of settings), or what fits a laptop if it has none.
Models are strict and frozen: unknown keys and wrong types are errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdpo_mlx.config.templates import TEMPLATES
from sdpo_mlx.core.hardware import amount_of
from sdpo_mlx.core.text import check_template

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Stop = Annotated[str, Field(min_length=1)]


class Settings(BaseModel):
    """Base of all sections: strict, frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class AdapterConfig(Settings):
    """Which weights are trained."""

    kind: Literal["lora", "dora", "full"] = Field("lora", description="low-rank, DoRA, or all weights")
    rank: PositiveInt = Field(16, description="rank of the low-rank factors")
    scale: float = Field(2.0, gt=0, description="raw multiplier of the low-rank product (mlx-lm's `scale`)")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout on the adapter's input while learning")
    keys: list[str] | None = Field(None, description="linear layers to adapt; null: all inside the blocks")
    layers: int = Field(-1, ge=-1, description="number of blocks to adapt, counted from the last; -1: all")
    start: str | None = Field(
        None, min_length=1, description="folder of an adapter or run that training starts from; null: a new adapter"
    )

    @model_validator(mode="after")
    def _layers_are_valid(self) -> AdapterConfig:
        if self.layers == 0:
            raise ValueError("layers: 0 adapts nothing, write -1 for all blocks")
        if self.kind == "full" and (self.layers != -1 or self.keys is not None):
            raise ValueError("kind: full trains every weight, remove layers and keys")
        return self


class ModelConfig(Settings):
    """The base model."""

    name: str = Field("tiny", min_length=1, description="alias, folder, GGUF file, or hub repository")
    backend: Literal["auto", "mlx", "torch"] = Field(
        "auto", description="library that runs the model; auto: mlx, or torch if only that can use an NVIDIA card here"
    )
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="device of torch; mlx chooses by itself")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="type of the weights; auto: as stored; torch on a card: bfloat16, or float32 if it has none; torch "
        "on a CPU: float32, or bfloat16 if fast there",
    )
    bits: Literal[4, 8] | None = Field(
        None, description="torch: quantize the base to so many bits (bitsandbytes); with mlx use a quantized model"
    )
    shard: bool = Field(
        False,
        description="torch under torchrun: split the blocks of the base over the ranks, for a base larger than a card",
    )
    thinking: bool = Field(False, description="turn on thinking in models with a switch for it")
    chat_template: str = Field(
        "auto", min_length=1, description="auto: the model's own, plain if it has none; plain; or a Jinja file"
    )
    adapter: AdapterConfig = AdapterConfig()

    @model_validator(mode="after")
    def _shard_is_possible(self) -> ModelConfig:
        if self.shard and self.adapter.kind == "full":
            raise ValueError("shard: a base that is trained in full is not split over ranks, use lora or dora")
        if self.shard and self.bits:
            raise ValueError("shard: a base that is quantized while it loads is not split over ranks, remove bits")
        return self


class TaskConfig(Settings):
    """The task: problems and grader."""

    name: str = Field("tiny", min_length=1, description="name of a task (see `sdpo tasks list`), or a Python file")
    data: str | None = Field(None, description="your problems: a file, or hub:NAME")
    feedback: str | None = Field(None, description="kind of feedback that the grader gives; null: the task's default")
    tests: Literal["all", "half"] = Field(
        "all",
        description="code: half: train with a random half of each problem's tests, evaluate it with all (paper)",
    )
    on_error: Literal["stop", "skip"] = Field("stop", description="what to do with bad rows in the data")
    max_turns: PositiveInt | None = Field(None, description="maximum turns of an episode; null: the task's default")


class RolloutConfig(Settings):
    """Sampling for training."""

    problems_per_step: PositiveInt = Field(8, description="problems per step (paper: 32)")
    group_size: PositiveInt = Field(8, description="rollouts per problem (paper: 8)")
    max_tokens: PositiveInt = Field(512, description="maximum length of a rollout in tokens (paper: 8192)")
    temperature: float = Field(1.0, gt=0, description="sampling temperature, also used in the loss")
    top_p: float = Field(1.0, gt=0, le=1.0, description="nucleus sampling; 1: off")
    stop: list[Stop] = Field([], description="texts after which a rollout ends, outside of thinking; they stay in it")
    concurrency: PositiveInt | None = Field(
        None,
        description="rollouts sampled at the same time; changes them by rounding alone; null: chosen to fit the memory",
    )
    engine: Literal["auto", "loop", "batching", "vllm"] = Field(
        "auto",
        description="torch: what samples rollouts; loop; batching: transformers' continuous batching; vllm: a process "
        "in an environment of its own; auto: batching on CUDA with flash-attn, else the loop",
    )
    vllm: str | None = Field(
        None, min_length=1, description="engine vllm: path of the Python in whose environment vllm is installed"
    )

    @model_validator(mode="after")
    def _vllm_is_complete(self) -> RolloutConfig:
        if self.engine == "vllm" and self.vllm is None:
            raise ValueError("engine: vllm needs vllm: PYTHON, the Python in whose environment vllm is installed")
        if self.engine != "vllm" and self.vllm is not None:
            raise ValueError(f"vllm: without engine: vllm it is not used, and engine is {self.engine}")
        if self.engine == "vllm" and self.top_p < 1.0:
            raise ValueError("top_p: must be 1 with engine: vllm, whose log-probs are those after the nucleus")
        return self


class TeacherConfig(Settings):
    """The self-teacher: its weights and its context."""

    kind: Literal["ema", "trust_region", "frozen", "live"] = Field(
        "ema", description="how the teacher's weights follow the student's"
    )
    update_rate: Share = Field(0.01, description="EMA rate, or the trust region's mixing share (paper: 0.05)")
    demonstration: Literal["first", "random", "off", "dataset"] = Field(
        "first",
        description="which successful rollout of the group is shown; dataset: the row's reference answer (2601.19897)",
    )
    own_success: bool = Field(False, description="allow a successful rollout as its own demonstration")
    all_correct: bool = Field(
        False,
        description="show demonstrations in groups whose rollouts all succeeded too (paper); long runs fall sooner",
    )
    success_threshold: float = Field(1.0, description="minimum reward of a demonstration")
    feedback: bool = Field(True, description="show the grader's feedback")
    feedback_only_without_demonstration: bool = Field(
        True, description="show feedback only if there is no demonstration"
    )
    include_attempt: bool = Field(False, description="quote the failed rollout (the paper warns of bias)")
    max_context_tokens: PositiveInt = Field(10_240, description="maximum length of the teacher's prompt in tokens")
    template: str | None = Field(
        None,
        description="layout of the teacher's prompt: paper (null: this one), reference, facts, requirements, or a text "
        "with the slots {problem} {demonstration} {attempt} {feedback}",
    )

    @field_validator("template")
    @classmethod
    def _template_has_known_slots(cls, template: str | None) -> str | None:
        if template is None or template in TEMPLATES:
            return template
        if "{" not in template:
            raise ValueError(
                f"there is no such template, name one of {', '.join(TEMPLATES)} or write a text with slots"
            )
        check_template(template)
        return template


class ObjectiveConfig(Settings):
    """The loss."""

    kind: Literal["sdpo", "grpo", "hybrid", "auto"] = Field(
        "auto",
        description="self-distillation, policy gradient with rewards, or both; auto: self-distillation as far as the "
        "self-teacher's credit agrees with the rewards, policy gradient for the rest",
    )
    alpha: Share = Field(
        0.5,
        description="0: forward KL, 1: reverse KL, between: generalized Jensen-Shannon; not continuous at the ends "
        "(towards 0 and 1 the divergence goes to zero, exactly 0 and 1 are the two KLs)",
    )
    support: Literal["full", "top_k", "sampled", "sequence"] = Field(
        "top_k", description="token ids over which both distributions are compared; sampled and sequence need alpha 1"
    )
    top_k: PositiveInt | None = Field(
        100, description="number of the student's most likely ids; null: the full vocabulary"
    )
    tail: bool = Field(True, description="one bucket for the probability outside the top-k; false: renormalize")
    importance_clip: float | None = Field(2.0, gt=0, description="maximum importance weight; null: no weights")
    importance: Literal["rollout", "reference"] = Field(
        "rollout",
        description="rollout: one ratio, to the probability at sampling; reference: as in the authors' code, the ratio "
        "to the probability before the batch's first update, times that one's ratio to sampling, each with the maximum",
    )
    aggregation: Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "reference"] = Field(
        "token_mean",
        description="how the losses of tokens and rollouts are averaged; reference: as in the authors' code, over the "
        "tokens of each rollout, then over all rollouts, those without a signal as 0",
    )
    question_weight: Literal["uniform", "pass_rate"] = Field(
        "uniform", description="weight of a problem; pass_rate: sqrt(p(1-p)) (SC-SDPO, 2605.27765)"
    )
    route: Literal["none", "by_success"] = Field(
        "none", description="by_success: GRPO for successful rollouts, SDPO for failed ones (SRPO, 2604.02288)"
    )
    hybrid_weight: Share = Field(0.5, description="kind hybrid: w of w * GRPO + (1 - w) * SDPO; kind auto measures it")
    clip_low: float = Field(0.2, ge=0, lt=1, description="GRPO: lower clip of the ratio")
    clip_high: float = Field(0.28, ge=0, description="GRPO: upper clip of the ratio")
    dual_clip: float | None = Field(
        None, gt=1, description="GRPO: maximum ratio if the advantage is negative (the authors' code: 3); null: none"
    )
    std_normalise: bool = Field(False, description="GRPO: divide advantages by the group's standard deviation")

    @model_validator(mode="after")
    def _sampled_needs_reverse_kl(self) -> ObjectiveConfig:
        if self.kind != "grpo" and self.support in ("sampled", "sequence") and self.alpha != 1.0:
            raise ValueError(f"support: {self.support} estimates the reverse KL, set alpha: 1.0")
        return self


class TrainConfig(Settings):
    """The optimizer and the run."""

    steps: NonNegativeInt = Field(100, description="training steps")
    learning_rate: float = Field(1e-4, ge=0, description="learning rate of AdamW (paper, full weights: 1e-6 to 1e-5)")
    schedule: Literal["wsd", "constant", "linear", "cosine"] = Field(
        "wsd",
        description="learning rate after the warmup; wsd: constant, then linear to 0 in the last fifth of the steps",
    )
    warmup_steps: NonNegativeInt = Field(0, description="steps of linear warmup")
    weight_decay: float = Field(0.01, ge=0, description="weight decay of AdamW")
    clip_norm: float = Field(1.0, gt=0, description="maximum global norm of the gradient")
    updates_per_batch: PositiveInt = Field(1, description="optimizer steps per batch of rollouts; 1: on-policy")
    micro_batch_tokens: PositiveInt | None = Field(
        None, description="tokens of a micro-batch; does not change the gradient; null: chosen to fit the memory"
    )
    memory_gb: float | None = Field(
        None,
        gt=0,
        description="memory to use, in GB; null: three quarters of this machine's, or what is free on a card",
    )
    grad_checkpoint: bool | None = Field(
        None, description="gradient checkpointing: less memory, slower; null: only if the memory requires it"
    )
    eval_every: NonNegativeInt = Field(
        10, description="steps between evaluations on held-out problems; 0: only before and after"
    )
    eval_share: float = Field(
        0.33,
        gt=0,
        le=1,
        description="most of a run's time for evaluations between steps: if one takes over a minute, eval_every grows "
        "after the first step; 1: never",
    )
    save_every: PositiveInt = Field(10, description="steps between checkpoints: a killed run loses at most these")
    patience: NonNegativeInt = Field(0, description="stop after so many evaluations without improvement; 0: never")
    on_decline: Literal["warn", "stop", "rollback"] = Field(
        "rollback",
        description="if the held-out score falls significantly: go on with a warning, end the run, or return to the "
        "best step with half the learning rate (at most twice, then end)",
    )
    seed: NonNegativeInt = Field(0, description="seed of sampling and of the adapter's initialization")
    probe: bool = Field(
        True, description="compare student and self-teacher on the first step's problems before it, and warn"
    )


class EvalConfig(Settings):
    """Held-out evaluation."""

    problems: PositiveInt | None = Field(
        None,
        description="number of held-out problems, the first ones; null: all; in training at most 128, evenly spaced",
    )
    samples: PositiveInt = Field(4, description="rollouts per problem")
    temperature: float = Field(1.0, ge=0, description="sampling temperature; 0: greedy")
    top_p: float = Field(1.0, gt=0, le=1.0, description="nucleus sampling; 1: off")
    max_tokens: PositiveInt | None = Field(
        None, description="maximum length of a rollout in tokens; null: as rollout.max_tokens"
    )


class SandboxConfig(Settings):
    """The sandbox for code that the model writes."""

    kind: Literal["auto", "bubblewrap", "seatbelt", "container", "unconfined"] = Field(
        "auto",
        description="auto: bubblewrap on Linux, Seatbelt on macOS; container and unconfined are never chosen by auto",
    )
    seconds: float = Field(
        6.0,
        gt=0,
        description="limit of CPU time for one run of the tests; the limit of wall time is three times as long",
    )
    total_seconds: float = Field(
        60.0,
        gt=0,
        description="the same where the data set has a limit for each test (LiveCodeBench, APPS, TACO)",
    )
    memory_mb: PositiveInt = Field(512, description="limit of address space of the program; at least the data set's")
    image: str = Field(
        "python:3.12.7-slim-bookworm",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$",
        description="kind container: a local image with Python 3.11 or newer; it is not pulled",
    )


class JudgeConfig(Settings):
    """The grader of the task `judge`: a language model on an OpenAI-compatible endpoint."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="URL, such as http://127.0.0.1:8080/v1; null: this run's base model, frozen",
    )
    model: str | None = Field(None, description="model name sent to the endpoint; null: none, the endpoint chooses")
    key_variable: str = Field(
        "OPENAI_API_KEY", description="environment variable with the API key; the key is never stored"
    )
    success: Share = Field(0.8, description="minimum share of the full score for success")
    max_tokens: PositiveInt = Field(300, description="maximum length of a judgement in tokens")
    seconds: float = Field(60.0, gt=0, description="timeout of one request")
    retries: NonNegativeInt = Field(3, description="retries after a failed request, with exponential backoff")
    cost_in: float = Field(0.0, ge=0, description="price per million input tokens, for the cost counter")
    cost_out: float = Field(0.0, ge=0, description="price per million output tokens, for the cost counter")


class MemoryConfig(Settings):
    """What MLX may hold, and compute at once, on a GPU; gradients stay the same up to rounding."""

    wired: Literal["off", "auto"] = Field(
        "off",
        description="off: nothing sets Metal's wired limit, which macOS has panicked under (mlx 3186: 3 runs of 3 with "
        "it, 0 of 10 without); auto: the recommended working set stays in memory, faster for models near its size",
    )
    limit: str | float = Field(
        "85%", description="memory that MLX should stay under: a share of the recommended working set, or 12GB (Metal)"
    )
    cache_limit: str | float = Field(
        "12.5%", description="freed memory that MLX keeps for its next arrays, in every phase; as memory.limit (Metal)"
    )
    evaluation_gflop: float | None = Field(
        None,
        gt=0,
        description="billions of operations that the GPU gets at once, so that the watchdog of macOS lets them end; "
        "null: by the chip",
    )

    @field_validator("limit", "cache_limit")
    @classmethod
    def _amount_is_readable(cls, amount: str | float) -> str | float:
        amount_of(amount, 2**40)
        return amount


class LogConfig(Settings):
    """What is logged besides events.jsonl."""

    sinks: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        [], description="experiment trackers to log to; a failing one never stops a run"
    )
    samples: NonNegativeInt = Field(8, description="rollout groups saved per step in rollouts/; 0: none")
    candidates: NonNegativeInt = Field(
        1, description="per 64 rollouts, number saved with the most likely tokens of student and teacher; 0: none"
    )
    teacher_answers: NonNegativeInt = Field(
        16,
        description="rollouts of self-teacher and student each, to compare them, every train.eval_every steps; 0: none",
    )


class Config(Settings):
    """The complete configuration of a run."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    teacher: TeacherConfig = TeacherConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sandbox: SandboxConfig = SandboxConfig()
    judge: JudgeConfig = JudgeConfig()
    memory: MemoryConfig = MemoryConfig()
    log: LogConfig = LogConfig()


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a config file; every key is optional."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sdpo-mlx settings"}
    return {**head, **{k: v for k, v in Config.model_json_schema().items() if k != "title"}}
