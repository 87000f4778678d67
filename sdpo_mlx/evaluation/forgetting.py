"""Forgetting: how far training moved the student from its base on general prompts and on a general text.

Before the first step the untouched student, which is the base p, answers a fixed set of prompts with fixed seeds at
temperature 1; ids and log-probs are stored in the run folder. Afterwards the student q scores the same ids. As the
tokens are sampled from p, the mean of log p - log q is an unbiased estimate of KL(p || q) per token. The mean of
q/p - 1, which is 0 in expectation, is a control variate: near the base it removes nearly all noise.
Perplexity is that of one embedded text; bits per byte allow a comparison between tokenizers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sdpo_mlx.backends.base import Policy, SamplingParams
from sdpo_mlx.core.progress import ProgressCallback, no_progress, track
from sdpo_mlx.core.seeding import derive
from sdpo_mlx.core.storage import digest, json_line, write_bytes
from sdpo_mlx.models.chat_template import Chat
from sdpo_mlx.types import IntArray

TOKENS = 24  # of each answer to a general prompt
WINDOW, OVERLAP = 256, 32  # tokens of the text scored at once, and tokens of context before them


@dataclass(frozen=True)
class TextScore:
    """How well a text is predicted: perplexity per token, and bits per byte of UTF-8."""

    perplexity: float
    bits_per_byte: float


@dataclass(frozen=True)
class Reference:
    """The base before training: prompts, its answers, their log-probs, and its score of the text."""

    prompts: tuple[IntArray, ...]
    answers: tuple[IntArray, ...]
    logps_T: npt.NDArray[np.float64]  # of the tokens of all answers, concatenated
    text: TextScore

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        prompts, answers = ([ids.tolist() for ids in each] for each in (self.prompts, self.answers))
        return {"prompts": prompts, "answers": answers, "logps": self.logps_T.tolist(), "text": vars(self.text)}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Reference:
        """Read what `record` returned; raises ValueError, TypeError or KeyError for anything else."""
        prompts, answers = (
            tuple(np.array(ids, dtype=np.int32) for ids in record[name]) for name in ("prompts", "answers")
        )
        logps_T = np.array(record["logps"], dtype=np.float64)
        if len(prompts) != len(answers) or logps_T.size != sum(ids.size for ids in answers):
            raise ValueError("answers and log-probs do not match")
        return cls(prompts, answers, logps_T, TextScore(**record["text"]))


@dataclass(frozen=True)
class Forgetting:
    """KL to the base in nats per token, its standard error, and the scores of the text before and after.

    Without a reference (`before` is None) the divergence is NaN.
    """

    divergence: float
    error: float
    before: TextScore | None
    after: TextScore

    def event(self) -> dict[str, float | None]:
        """Return the fields of a `forgetting` event, and of `run_finished`."""
        return {
            "forgetting/divergence": self.divergence,
            "forgetting/divergence_error": self.error,
            **{
                f"forgetting/{name}_{when}": getattr(score, name) if score else None
                for name in ("perplexity", "bits_per_byte")
                for when, score in (("before", self.before), ("after", self.after))
            },
        }

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> Forgetting:
        """Read it from its event; JSON holds NaN as null."""

        def value(name: str) -> float:
            found = event.get(f"forgetting/{name}")
            return math.nan if found is None else float(found)

        before, after = (
            TextScore(value(f"perplexity_{when}"), value(f"bits_per_byte_{when}")) for when in ("before", "after")
        )
        known = not math.isnan(before.perplexity)
        return cls(value("divergence"), value("divergence_error"), before if known else None, after)


def reference(
    policy: Policy,
    chat: Chat,
    interrupted: Callable[[], bool] = lambda: False,
    on_progress: ProgressCallback = no_progress,
) -> Reference:
    """Sample the untouched student's answers to the general prompts; equal bases give equal references.

    Raises KeyboardInterrupt if `interrupted()` returns True.
    """
    chat = chat.stopping_at(())  # `rollout.stop` is for the task
    room = policy.info.context_length - TOKENS
    rendered = [chat.render([{"role": "user", "content": prompt}]) for prompt in general_prompts()]
    prompts = tuple(ids for ids in rendered if ids.size <= room)
    sampling = SamplingParams(TOKENS, 1.0, 1.0, chat.eos_ids, at_stop_text=chat.at_stop_text)
    seeds = [[derive("ordinary", at)] for at in range(len(prompts))]
    # No prompt may fit into a very short context.
    generated = policy.generate(prompts, sampling, seeds, interrupted) if prompts else ()
    by_prompt = {at: found.ids_T for at, _, found in track(generated, on_progress, len(prompts))}
    answers = tuple(by_prompt[at] for at in range(len(prompts)))
    # Scored in the same way as afterwards, so that an untouched student diverges by exactly 0.
    return Reference(prompts, answers, _logps(policy, prompts, answers), text_score(policy, chat))


def forgetting(policy: Policy, chat: Chat, before: Reference | None) -> Forgetting:
    """Compare the student with the base in two passes of `Policy.score`."""
    after = text_score(policy, chat)
    if before is None:
        return Forgetting(math.nan, math.nan, None, after)
    return Forgetting(*divergence_from(before, policy), before.text, after)


def divergence_from(base: Reference, policy: Policy) -> tuple[float, float]:
    """Return the student's KL from the base on general prompts (nats per token) and its standard error.

    One pass of `Policy.score` over some hundred tokens.
    """
    return divergence(base.logps_T, _logps(policy, base.prompts, base.answers))


def divergence(base_T: npt.NDArray[np.float64], student_T: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return KL(base || student) per token and its standard error (nats), from tokens sampled by the base.

    The control variate q/p - 1 is weighted by regression, so that one token with a huge ratio hardly counts.
    NaN without tokens or if a log-prob is not finite.
    """
    log_T = base_T - student_T
    if not log_T.size or not np.isfinite(log_T).all():
        return math.nan, math.nan
    ratio_T = np.expm1(np.minimum(-log_T, 500.0))
    centred_T, spread = ratio_T - ratio_T.mean(), float(((ratio_T - ratio_T.mean()) ** 2).sum())
    weight = -float((log_T * centred_T).sum()) / spread if spread > 0 else 1.0
    terms_T = log_T + weight * ratio_T
    return float(terms_T.mean()), float(terms_T.std() / math.sqrt(terms_T.size))


def text_score(policy: Policy, chat: Chat) -> TextScore:
    """Return the student's score of the embedded text; windows overlap for context.

    Each window begins as the tokenizer begins a text. If that is with nothing, the first token has no score.
    """
    text, opening = str(_general()["text"]), np.array(chat.opening_ids, dtype=np.int32)
    ids = np.array(chat.encode_plain(text), dtype=np.int32)
    unscored = 0 if opening.size else 1
    window = max(1, min(WINDOW, policy.info.context_length - OVERLAP - opening.size))
    starts = range(unscored, ids.size, window)
    parts = [ids[max(0, start - OVERLAP) : start + window] for start in starts]
    sequences = [np.concatenate([opening, each]) for each in parts]
    spans = [(opening.size + min(start, OVERLAP), each.size) for start, each in zip(starts, sequences, strict=True)]
    found = policy.score("student", sequences, spans)
    nats = -math.fsum(float(logp) for each in found for logp in each.logps_T)
    first = len(chat.decode(ids[:unscored]).encode("utf-8"))
    size = max(1, len(text.encode("utf-8")) - first)
    per_token = nats / max(1, ids.size - unscored)
    # Larger exponents overflow.
    return TextScore(math.exp(per_token) if per_token < 700 else math.inf, nats / math.log(2) / size)


def load_reference(path: Path, identity: Mapping[str, Any]) -> Reference | None:
    """Return what `save_reference` stored for the same base, tokenizer and prompts, None if there is no such file."""
    try:
        found = json.loads(path.read_bytes())
        return Reference.of(found["reference"]) if found["of"] == _key(identity) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save_reference(path: Path, found: Reference, identity: Mapping[str, Any]) -> None:
    """Store it for the end of the run; raises StorageError."""
    write_bytes(path, json_line({"of": _key(identity), "reference": found.record()}))


def _key(identity: Mapping[str, Any]) -> str:
    return digest(json_line({**identity, "asked": _general(), "tokens": TOKENS, "opening": True}))


def _logps(policy: Policy, prompts: Sequence[IntArray], answers: Sequence[IntArray]) -> npt.NDArray[np.float64]:
    sequences = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
    spans = [(prompt.size, each.size) for prompt, each in zip(prompts, sequences, strict=True)]
    found = policy.score("student", sequences, spans) if sequences else []
    return np.concatenate([np.zeros(0), *(each.logps_T.astype(np.float64) for each in found)])


def general_prompts() -> list[str]:
    """Return the prompts that the base answers."""
    return list(_general()["prompts"])


def _general() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("sdpo_mlx") / "assets" / "ordinary.json").read_text(encoding="utf-8"))
    return found
