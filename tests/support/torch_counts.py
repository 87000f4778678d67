"""What a piece of torch code costs the host and the memory: operations, waits for the device, bytes kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

FETCHES = ("cpu", "tolist", "item", "__bool__", "__float__", "__int__")  # each waits for a GPU


class Operations(TorchDispatchMode):
    """Counts operations by name, without views: what a GPU would launch, some with more than one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func)] += not func.is_view
        return func(*args, **(kwargs or {}))


class Fetches(TorchFunctionMode):
    """Counts calls that bring a value to the host, on a CPU too, where nothing is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += getattr(func, "__name__", "") in FETCHES
        return func(*args, **(kwargs or {}))


@contextmanager
def kept_bytes(parameters: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Inside, note the storages that autograd keeps, with their bytes; those of the parameters exist anyway."""
    own, kept = {each.untyped_storage().data_ptr() for each in parameters}, dict[int, int]()
    held = []  # a freed storage's address may come again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held.append(storage)
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
