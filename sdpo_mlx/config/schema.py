"""Every setting, its default and its meaning; help, docs and the JSON Schema are made from here.

Defaults are the paper's where it has one (arXiv 2601.20802, section 6 of its settings), and what fits a
laptop where it hasn't. Models are strict and frozen: unknown keys and wrong types are errors.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sdpo_mlx.core.text import check_template

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


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
    layers: int = Field(-1, ge=-1, description="how many blocks, counted from the last; -1: all (not with full)")

    @model_validator(mode="after")
    def _layers_mean_something(self) -> AdapterConfig:
        if self.layers == 0:
            raise ValueError("layers: 0 would adapt nothing, write -1 for all blocks")
        if self.kind == "full" and (self.layers != -1 or self.keys is not None):
            raise ValueError("kind: full trains every weight, leave layers and keys out")
        return self


class ModelConfig(Settings):
    """The base model."""

    name: str = Field("tiny", min_length=1, description="alias, folder, or hub repository")
    backend: Literal["auto", "mlx", "torch"] = Field("auto", description="what runs the arithmetic; auto: mlx")
    device: Literal["auto", "cuda", "mps", "cpu"] = Field("auto", description="where torch runs; mlx finds its own")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights' type; auto: as stored, float32 where the CPU is the device"
    )
    bits: Literal[4, 8] | None = Field(
        None, description="torch: hold the base's layers in so many bits (bitsandbytes); for mlx name a quantised model"
    )
    thinking: bool = Field(False, description="let models with a thinking switch think before answering")
    adapter: AdapterConfig = AdapterConfig()


class TaskConfig(Settings):
    """The environment."""

    name: str = Field("tiny", min_length=1, description="a task's name; `sdpo tasks list` shows them")
    data: str | None = Field(None, description="problems of one's own: a file, or hub:NAME")
    feedback: str | None = Field(None, description="what the environment says; null: the task's own default")
    on_error: Literal["stop", "skip"] = Field("stop", description="what to do with bad rows in the data")
    max_turns: PositiveInt | None = Field(None, description="most answers an episode; null: the task's own number")


class RolloutConfig(Settings):
    """Sampling for training."""

    problems_per_step: PositiveInt = Field(8, description="problems a step (paper: 32)")
    group_size: PositiveInt = Field(8, description="rollouts a problem (paper: 8)")
    max_tokens: PositiveInt = Field(512, description="longest answer in tokens (paper: 8192)")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; the loss uses it too")
    top_p: float = Field(1.0, gt=0, le=1.0, description="nucleus sampling; 1: off")
    concurrency: PositiveInt | None = Field(
        None, description="answers written at once; never changes one; null: as the plan says"
    )


class TeacherConfig(Settings):
    """The self-teacher: its weights and what it sees (SDPO.md sections 3 and 4)."""

    kind: Literal["ema", "trust_region", "frozen", "live"] = Field("ema", description="the teacher's weights")
    update_rate: Share = Field(0.05, description="EMA rate, or the trust region's mixing share")
    demonstration: Literal["first", "random", "off", "dataset"] = Field(
        "first", description="which successful sibling is shown; dataset: the row's own reference answer (2601.19897)"
    )
    own_success: bool = Field(False, description="may a success be its own demonstration")
    success_threshold: float = Field(1.0, description="reward from which an answer may serve as demonstration")
    feedback: bool = Field(True, description="show the environment's text")
    feedback_only_without_demonstration: bool = Field(True, description="show it only where no sibling succeeded")
    include_attempt: bool = Field(False, description="quote the failed attempt (biases the teacher, says the paper)")
    max_context_tokens: PositiveInt = Field(10_240, description="longest teacher prompt")
    template: str | None = Field(
        None, description="own layout with the slots {problem} {demonstration} {attempt} {feedback}; null: the paper's"
    )

    @field_validator("template")
    @classmethod
    def _template_has_known_slots(cls, template: str | None) -> str | None:
        if template is not None:
            check_template(template)
        return template


class ObjectiveConfig(Settings):
    """The loss (SDPO.md section 2)."""

    kind: Literal["sdpo", "grpo", "hybrid"] = Field("sdpo", description="what is learned from")
    alpha: Share = Field(
        0.5,
        description="0: forward KL, 1: reverse KL, between: Jensen-Shannon-like; not continuous at its ends "
        "(towards 0 and 1 the middle form goes to zero loss, exactly 0 and 1 are the two KLs)",
    )
    support: Literal["full", "top_k", "sampled", "sequence"] = Field(
        "top_k", description="where p and q are compared; sampled and sequence need alpha 1"
    )
    top_k: PositiveInt | None = Field(100, description="the student's most likely ids; null: the full vocabulary")
    tail: bool = Field(True, description="one bucket for the mass outside the top-k; false: renormalise")
    importance_clip: float | None = Field(2.0, gt=0, description="cap of the importance weight; null: no weight")
    aggregation: Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"] = "token_mean"
    question_weight: Literal["uniform", "pass_rate"] = Field(
        "uniform", description="pass_rate: sqrt(p(1-p)) a problem (SC-SDPO, 2605.27765)"
    )
    route: Literal["none", "by_success"] = Field(
        "none", description="by_success: successes learn by GRPO, failures by SDPO (SRPO, 2604.02288)"
    )
    hybrid_weight: Share = Field(0.5, description="lambda of lambda * GRPO + (1 - lambda) * SDPO")
    clip_low: float = Field(0.2, ge=0, lt=1, description="GRPO: lower clip of the ratio")
    clip_high: float = Field(0.28, ge=0, description="GRPO: upper clip of the ratio")
    std_normalise: bool = Field(False, description="GRPO: divide advantages by the group's deviation")

    @model_validator(mode="after")
    def _sampled_needs_reverse_kl(self) -> ObjectiveConfig:
        if self.kind != "grpo" and self.support in ("sampled", "sequence") and self.alpha != 1.0:
            raise ValueError(f"support: {self.support} is an estimate of the reverse KL, set alpha: 1.0")
        return self


class TrainConfig(Settings):
    """The optimizer and the run."""

    steps: NonNegativeInt = 100
    learning_rate: float = Field(1e-4, ge=0, description="AdamW's rate (paper, full weights: 1e-6 to 1e-5)")
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: NonNegativeInt = 0
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="gradient's largest global norm")
    updates_per_batch: PositiveInt = Field(1, description="optimizer steps a rollout batch; 1 is on-policy")
    micro_batch_tokens: PositiveInt | None = Field(
        None, description="tokens forwarded at once; never changes the gradient; null: as the plan says"
    )
    memory_gb: float | None = Field(
        None, gt=0, description="memory that the plan may count on; null: three quarters of this machine's"
    )
    grad_checkpoint: bool | None = Field(
        None, description="blocks run again in the backward pass: less memory, slower; null: as the plan says"
    )
    eval_every: NonNegativeInt = Field(10, description="steps between held-out evaluations; 0: only first and last")
    save_every: PositiveInt = Field(10, description="steps between checkpoints: the most a killed run loses")
    patience: NonNegativeInt = Field(0, description="stop after so many evaluations without a new best; 0: never")
    seed: NonNegativeInt = 0


class EvalConfig(Settings):
    """Held-out evaluation."""

    problems: PositiveInt | None = Field(None, description="the first so many held-out problems; null: all")
    samples: PositiveInt = Field(4, description="answers a problem")
    temperature: float = Field(1.0, ge=0, description="0: greedy")
    top_p: float = Field(1.0, gt=0, le=1.0)
    max_tokens: PositiveInt | None = Field(None, description="null: as rollout.max_tokens")


class SandboxConfig(Settings):
    """Where model-written code runs."""

    kind: Literal["auto", "bubblewrap", "seatbelt", "container", "unconfined"] = Field(
        "auto", description="auto: bubblewrap on Linux, Seatbelt on macOS; container and unconfined only by name"
    )
    seconds: float = Field(
        6.0,
        gt=0,
        description="processor time for one run of one answer's tests; the wall clock may show three times as much",
    )
    memory_mb: PositiveInt = Field(512, description="address space of the candidate")
    image: str = Field(
        "python:3.12.7-slim-bookworm",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]*$",
        description="kind container: a local image with Python 3.11 or newer; never pulled for you",
    )


class JudgeConfig(Settings):
    """Who grades in the task `judge`: a language model behind an OpenAI-compatible endpoint."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s]+$",
        description="such as http://127.0.0.1:8080/v1; null: this run's base, frozen",
    )
    model: str | None = Field(None, description="the name that the endpoint knows; null: whatever it serves")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the key; never stored")
    success: Share = Field(0.8, description="share of the full score from which an answer is a success")
    max_tokens: PositiveInt = Field(300, description="longest remark in tokens")
    seconds: float = Field(60.0, gt=0, description="time for one request")
    retries: NonNegativeInt = Field(3, description="further tries after a failure, each after twice the wait")
    cost_in: float = Field(0.0, ge=0, description="price of a million tokens read, for the counter")
    cost_out: float = Field(0.0, ge=0, description="price of a million tokens written, for the counter")


class LogConfig(Settings):
    """What is kept besides the event stream, and who else hears it."""

    sinks: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = Field(
        [], description="trackers that hear every event as well; a failing one never stops a run"
    )
    samples: NonNegativeInt = Field(8, description="rollout groups kept a step in rollouts/; 0: none")
    candidates: NonNegativeInt = Field(
        1, description="answers kept with the likeliest tokens of student and self-teacher, for 64 sampled; 0: none"
    )
    teacher_answers: NonNegativeInt = Field(
        8, description="problems that the self-teacher answers too, as often as train.eval_every; 0: none"
    )


class Config(Settings):
    """One run, completely."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rollout: RolloutConfig = RolloutConfig()
    teacher: TeacherConfig = TeacherConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    sandbox: SandboxConfig = SandboxConfig()
    judge: JudgeConfig = JudgeConfig()
    log: LogConfig = LogConfig()


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a settings file; every key may be left out."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "sdpo-mlx settings"}
    return {**head, **{k: v for k, v in Config.model_json_schema().items() if k != "title"}}
