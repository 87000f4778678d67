"""Everything that this backend uses of mlx-lm, except its server.

mlx-lm imports `transformers.AutoTokenizer`, and that imports torch: here it gets one that does not. It also imports
wandb where that is installed (0.4 seconds), for callbacks that are not used here: that waits until one is. So no
other module of this package imports mlx-lm directly.
"""

import sys

from sdpo_mlx.models.tokenizer import deferred, torch_free_imports

with torch_free_imports(), deferred("wandb"):
    from mlx_lm.generate import BatchGenerator

    mlx_lm_generate = sys.modules[BatchGenerator.__module__]  # `mlx_lm.generate` names the function as well
    from mlx_lm.models.base import create_causal_mask
    from mlx_lm.models.cache import ArraysCache, CacheList, ConcatenateKVCache, make_prompt_cache
    from mlx_lm.models.gated_delta import gated_delta_update
    from mlx_lm.models.ssm import ssm_attn, ssm_update
    from mlx_lm.sample_utils import apply_top_p
    from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
    from mlx_lm.utils import dequantize_model, load_model, save_config, save_model

__all__ = [
    "ArraysCache",
    "BatchGenerator",
    "CacheList",
    "ConcatenateKVCache",
    "apply_top_p",
    "create_causal_mask",
    "dequantize_model",
    "gated_delta_update",
    "linear_to_lora_layers",
    "load_adapters",
    "load_model",
    "make_prompt_cache",
    "mlx_lm_generate",
    "save_config",
    "save_model",
    "ssm_attn",
    "ssm_update",
]
