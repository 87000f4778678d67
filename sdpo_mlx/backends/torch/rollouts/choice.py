"""Which engine samples rollouts: the setting, what this machine and model support, and a check before the first use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from sdpo_mlx.backends.base import SamplingParams
from sdpo_mlx.backends.torch.losses import at, log_softmax
from sdpo_mlx.backends.torch.model import Model
from sdpo_mlx.backends.torch.rollouts import continuous_api
from sdpo_mlx.backends.torch.rollouts.batching import Batching
from sdpo_mlx.backends.torch.rollouts.engine import Loop, RolloutEngine
from sdpo_mlx.config import RolloutConfig
from sdpo_mlx.core.errors import ConfigError

CHECKED = 16  # tokens of the answer that is scored again
# Mean distance of their log-probs: 7e-6 in float32; 16 bits round logits by up to 0.6 (SmolLM2 in bfloat16), and wrong
# weights or masks are nats away.
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}


def choose(cfg: RolloutConfig, model: Model, vllm: Callable[[str], RolloutEngine]) -> tuple[RolloutEngine, str]:
    """Return the engine of these settings, and why it is not the expected one (blank if it is).

    `vllm` starts that engine with a Python. Raise ConfigError if the settings ask for one that does not support this
    model.
    """
    if cfg.vllm is not None and model.sharded:
        fix = "leave it out, or leave model.shard out"
        raise ConfigError("vllm would hold the whole base on the card of each rank", where="rollout.vllm", fix=fix)
    if cfg.vllm is not None:
        return vllm(cfg.vllm), ""
    on_card = model.device.type == "cuda"
    if cfg.engine == "loop" or (cfg.engine == "auto" and not on_card):
        return Loop(), ""
    why = unsupported(model)
    if cfg.engine == "batching" and why:
        raise ConfigError(f"batching does not support this: {why}", where="rollout.engine", fix="use auto or loop")
    if cfg.engine == "auto" and not why and not continuous_api.flash_attention(model.whole):
        # Without it, each row's attention runs over the keys of all rows.
        why = "flash-attn is not installed, or does not support this model or its type"
    if not why:
        engine = Batching()
        why = disagreement(engine, model)
        engine.close()
    return (Loop(), f"rollouts are sampled by the loop, which is slower on a GPU: {why}") if why else (engine, "")


def unsupported(model: Model) -> str:
    """Why continuous batching cannot sample from this model; blank if nothing is known."""
    if not continuous_api.supported():
        return f"it was tested with transformers {continuous_api.SUPPORTED}, this is {transformers.__version__}"
    if model.sharded:
        return "the base is split over ranks"
    if not model.batched or model.device.type == "mps":
        return "this model's rollouts are sampled one by one" if not model.batched else "not on this device"
    layers = DynamicCache(config=model.whole.config.get_text_config()).layers
    other = next((each for each in layers if type(each) not in (DynamicLayer, DynamicSlidingWindowLayer)), None)
    return f"the model has layers with another cache ({type(other).__name__})" if other is not None else ""


@torch.no_grad()
def disagreement(engine: RolloutEngine, model: Model) -> str:
    """Why a short greedy answer of the engine is not what this model's own forward pass says; blank if it is."""
    prompt = np.arange(1, 25, dtype=np.int32) % model.vocab_size
    sampling = SamplingParams(CHECKED, 0.0, 1.0, frozenset())
    try:
        found = [rollout for _, _, rollout in engine.generate(model, [prompt], sampling, [[0, 0]])]
    except Exception as error:  # of a library's private parts: whatever it raises, the loop works
        return f"a check of it failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
    gaps = []
    for rollout in found:
        ids = torch.from_numpy(np.concatenate([prompt, rollout.ids_T]).astype(np.int64)).to(model.device)
        logits = model.logits(model.hidden(ids[None])[0, prompt.size - 1 : -1])
        own_T = at(log_softmax(logits, 1.0), ids[prompt.size :]).cpu().numpy()
        gaps.append(float(np.abs(own_T - rollout.logps_T).mean()))
    # Not `>`: a log-prob that is not finite must not pass.
    agree = len(gaps) == 2 and max(gaps) <= CLOSE.get(model.whole.dtype, CLOSE[torch.bfloat16])
    return "" if agree else f"its log-probs differ from the model's own by {max(gaps, default=np.nan):.2g} nats a token"
