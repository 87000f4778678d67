"""Short names of hub repositories, one for each backend: `--model qwen3.5:9b`.

An alias stands for a repository, not for a commit: the commit of `main` is resolved at run time and kept in the run's
manifest; `owner/name@commit` pins it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Alias:
    """Repositories of one model: `mlx` is quantized in MLX's layout, `torch` is the original that transformers reads.

    `gigabytes` is the approximate download of the `mlx` repository, `billions` the number of parameters, which
    the `torch` repository stores with two bytes each. `license` is that of the original. `verified`: both names are
    in the documentation or the source of other public projects; otherwise they follow the naming of their owner.
    """

    mlx: str
    torch: str
    gigabytes: float
    billions: float
    license: str
    verified: bool = True

    def repository(self, backend: str) -> str:
        """Return the repository for a backend; `auto` is mlx."""
        return self.torch if backend == "torch" else self.mlx

    def bytes(self, backend: str) -> float:
        """Return the approximate bytes of the weights that a backend downloads."""
        return 2e9 * self.billions if backend == "torch" else 1e9 * self.gigabytes


def _mlx(name: str, torch: str, gigabytes: float, billions: float, terms: str = "apache-2.0") -> Alias:
    return Alias(f"mlx-community/{name}", torch, gigabytes, billions, terms)


_QWEN = _mlx("Qwen3-4B-Instruct-2507-4bit", "Qwen/Qwen3-4B-Instruct-2507", 2.3, 4.0)
_QWEN35 = _mlx("Qwen3.5-4B-MLX-4bit", "Qwen/Qwen3.5-4B", 3.1, 4.7)
_QWEN36 = _mlx("Qwen3.6-27B-4bit", "Qwen/Qwen3.6-27B", 16.1, 27.8)
_GEMMA4 = _mlx("gemma-4-e4b-it-4bit", "google/gemma-4-E4B-it", 5.2, 8.0)
_GEMMA3 = _mlx("gemma-3-4b-it-4bit", "google/gemma-3-4b-it", 3.3, 4.3, "gemma")
_LLAMA = _mlx("Llama-3.2-3B-Instruct-4bit", "meta-llama/Llama-3.2-3B-Instruct", 1.8, 3.2, "llama3.2")
_MINISTRAL = _mlx("Ministral-3-3B-Instruct-2512-4bit", "mistralai/Ministral-3-3B-Instruct-2512-BF16", 2.8, 3.8)

# No hub can be reached by the authors' machines: the names were found in other public projects (November 2026) unless
# marked, none was downloaded. A name that the hub lacks is reported with what the alias stands for (`hub.download`).
# gemma and llama ask on the hub to accept their terms; so `torch` needs `hf auth login`.
TABLE: Mapping[str, Alias] = {
    "qwen": _QWEN,
    "qwen:tiny": _mlx("Qwen3-0.6B-4bit", "Qwen/Qwen3-0.6B", 0.335, 0.6),
    "qwen:8b": _mlx("Qwen3-8B-4bit", "Qwen/Qwen3-8B", 4.6, 8.2),
    "qwen:30b-a3b": _mlx("Qwen3-30B-A3B-Instruct-2507-4bit", "Qwen/Qwen3-30B-A3B-Instruct-2507", 17.2, 30.5),
    "qwen3.5": _QWEN35,
    "qwen3.5:0.8b": _mlx("Qwen3.5-0.8B-MLX-4bit", "Qwen/Qwen3.5-0.8B", 0.6, 0.9),
    "qwen3.5:4b": _QWEN35,
    "qwen3.5:9b": _mlx("Qwen3.5-9B-MLX-4bit", "Qwen/Qwen3.5-9B", 6.0, 9.7),
    "qwen3.6": _QWEN36,
    "qwen3.6:27b": _QWEN36,
    "qwen3.6:35b-a3b": _mlx("Qwen3.6-35B-A3B-4bit", "Qwen/Qwen3.6-35B-A3B", 20.4, 36.0),
    "gemma4": _GEMMA4,
    "gemma4:e2b": _mlx("gemma-4-e2b-it-4bit", "google/gemma-4-E2B-it", 3.6, 5.1),
    "gemma4:e4b": _GEMMA4,
    "gemma4:26b-a4b": _mlx("gemma-4-26b-a4b-it-4bit", "google/gemma-4-26B-A4B-it", 15.6, 26.5),
    "gemma3": _GEMMA3,
    "gemma3:1b": replace(_mlx("gemma-3-1b-it-4bit", "google/gemma-3-1b-it", 0.73, 1.0, "gemma"), verified=False),
    "gemma3:4b": _GEMMA3,
    "llama": _LLAMA,
    "llama:1b": _mlx("Llama-3.2-1B-Instruct-4bit", "meta-llama/Llama-3.2-1B-Instruct", 0.7, 1.2, "llama3.2"),
    "llama:3b": _LLAMA,
    "llama:8b": _mlx("Llama-3.1-8B-Instruct-4bit", "meta-llama/Llama-3.1-8B-Instruct", 4.5, 8.0, "llama3.1"),
    "gpt-oss": _mlx("gpt-oss-20b-MXFP4-Q8", "openai/gpt-oss-20b", 12.1, 20.9),
    "lfm2.5": _mlx("LFM2.5-1.2B-Instruct-4bit", "LiquidAI/LFM2.5-1.2B-Instruct", 0.7, 1.2, "lfm1.0"),
    "ministral": _MINISTRAL,
    "ministral:3b": _MINISTRAL,
    "ministral:8b": _mlx("Ministral-3-8B-Instruct-2512-4bit", "mistralai/Ministral-3-8B-Instruct-2512-BF16", 5.6, 8.9),
    "granite4": _mlx("granite-4.0-h-tiny-4bit", "ibm-granite/granite-4.0-h-tiny", 3.9, 6.9),
    "smollm3": _mlx("SmolLM3-3B-4bit", "HuggingFaceTB/SmolLM3-3B", 1.7, 3.1),
}


def repository(name: str, backend: str = "auto") -> str:
    """Return the repository that an alias stands for on this backend; any other name as it is."""
    return TABLE[name].repository(backend) if name in TABLE else name
