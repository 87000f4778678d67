"""Open a model's tokenizer with transformers, without importing torch.

`transformers.AutoTokenizer` imports torch if it is installed (seen in 5.24: 3 CPU seconds and 300 MB), for two
reasons that do not concern tokenizers: its module imports `modeling_rope_utils`, which imports torch at the top,
and it opens the model's configuration, which turns the name of its dtype into a `torch.dtype`. There is no switch
against either (`USE_TORCH` is gone since 5.0), so a stand-in takes the place of torch during the first, and the
configuration is handed over without its dtype. A torch that was imported before is left alone, and one that is
imported later is the real one.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any


class _StandIn(ModuleType):
    """Module that imports the real one of its name when an attribute is first read."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@cache
def auto_tokenizer() -> Any:
    """Return `transformers.AutoTokenizer` as a subclass whose `from_pretrained` does not import torch."""
    # Only tokenizers are used: no warning to every user that PyTorch is missing.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with deferred("torch"):
        from transformers import AutoTokenizer

    class TorchFreeTokenizer(AutoTokenizer):  # type: ignore[misc]  # untyped where transformers is skipped
        @classmethod
        def from_pretrained(cls, path: str | Path, *args: Any, **options: Any) -> Any:
            if not options.keys() & {"config", "gguf_file", "subfolder"} and not options.get("trust_remote_code"):
                with suppress(Exception):  # an exotic configuration: transformers reads it by itself
                    from transformers import CONFIG_MAPPING, PreTrainedConfig

                    content = _without_dtype(json.loads((Path(path) / "config.json").read_text(encoding="utf-8")))
                    kind = CONFIG_MAPPING.get(content.get("model_type"), PreTrainedConfig)
                    configuration = kind.from_dict(content)
                    configuration.name_or_path = str(Path(path))
                    options["config"] = configuration
            return AutoTokenizer.from_pretrained(path, *args, **options)

    return TorchFreeTokenizer


def opening_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the ids that a text begins with, such as BOS: those of the post-processor, or of `add_bos_token`.

    transformers 5 ignores that setting beside a tokenizer.json.
    """
    whole, alone = (tokenizer("x", add_special_tokens=added)["input_ids"] for added in (True, False))
    found = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), 0)
    file = Path(tokenizer.name_or_path) / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    flagged = settings.get("add_bos_token") is True and tokenizer.bos_token_id is not None
    return tuple(whole[:found]) or ((tokenizer.bos_token_id,) if flagged else ())


@contextmanager
def torch_free_imports() -> Iterator[None]:
    """Give `auto_tokenizer()` to the modules that import `transformers.AutoTokenizer` in this block."""
    torch_free = auto_tokenizer()
    import transformers

    original = transformers.AutoTokenizer
    transformers.AutoTokenizer = torch_free
    try:
        yield
    finally:
        transformers.AutoTokenizer = original


@contextmanager
def deferred(name: str) -> Iterator[None]:
    """Imports of a package in this block get a stand-in; nothing changes if it was imported or is not installed."""
    spec = None if name in sys.modules else find_spec(name)
    if spec is None:
        yield
        return
    stand_in = _StandIn(name)
    stand_in.__spec__ = spec  # so that `find_spec` still answers that it is installed
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]


def _without_dtype(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_dtype(each) for each in value]
    if isinstance(value, dict):
        return {key: _without_dtype(each) for key, each in value.items() if key not in ("dtype", "torch_dtype")}
    return value
