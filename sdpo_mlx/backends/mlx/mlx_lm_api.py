"""Everything that this backend uses of mlx-lm.

mlx-lm imports `transformers.AutoTokenizer`, and that imports torch: here it gets one that does not. It also imports
wandb where that is installed (0.4 seconds), for callbacks that are not used here: that waits until one is. So no
other module of this package imports mlx-lm directly.
"""

import sys

from sdpo_mlx.models.tokenizer import deferred, torch_free_imports

with torch_free_imports(), deferred("wandb"):
    from mlx_lm.generate import BatchGenerator, TextStateMachine, make_text_state_machine

    mlx_lm_generate = sys.modules[BatchGenerator.__module__]  # `mlx_lm.generate` names the function as well
    from mlx_lm.models.base import create_causal_mask
    from mlx_lm.models.cache import ArraysCache, CacheList, ConcatenateKVCache, LRUPromptCache, make_prompt_cache
    from mlx_lm.models.gated_delta import gated_delta_update
    from mlx_lm.models.ssm import ssm_attn, ssm_update
    from mlx_lm.sample_utils import apply_min_p, apply_top_k, apply_top_p, make_logits_processors
    from mlx_lm.tokenizer_utils import load as load_tokenizer
    from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
    from mlx_lm.utils import dequantize_model, load_model, save_config, save_model

__all__ = [
    "ArraysCache",
    "BatchGenerator",
    "CacheList",
    "ConcatenateKVCache",
    "LRUPromptCache",
    "TextStateMachine",
    "apply_min_p",
    "apply_top_k",
    "apply_top_p",
    "create_causal_mask",
    "dequantize_model",
    "gated_delta_update",
    "linear_to_lora_layers",
    "load_adapters",
    "load_model",
    "load_tokenizer",
    "make_logits_processors",
    "make_prompt_cache",
    "make_text_state_machine",
    "mlx_lm_generate",
    "save_config",
    "save_model",
    "ssm_attn",
    "ssm_update",
]
