"""A frozen base split over the ranks with FSDP2, for models larger than a card.

Each rank holds a part of every block, and receives the rest whenever the block runs. Embeddings, the head and the
adapter are whole on every rank, so adapters, checkpoints and the sum of gradients are those of ranks that hold the
whole model. FSDP2 on the model as a whole would not do: body and head are called apart.

A pass of one rank needs all ranks. So before the first block runs, the ranks agree on the kind of pass
(`ProcessGroup.meet`); one that has nothing to run joins with a single token, and its gradient of zeros. Ranks may
therefore differ in units, in rollouts and in their lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from sdpo_mlx.backends.distributed.process_group import FORWARD, GRADIENT, PassError, ProcessGroup
from sdpo_mlx.backends.torch.model import Model, blocks, states_of
from sdpo_mlx.core.errors import ConfigError, SdpoError

# Of one collective: ranks within a pass wait for each other's arithmetic alone. NCCL is aborted when the heartbeat
# stops; gloo (processors) has no such call, and ends by this limit if a rank freezes.
PASS_LIMIT = timedelta(minutes=5)


def shard(model: Model, parameters: Mapping[str, nn.Parameter], group: ProcessGroup) -> None:
    """Split the blocks of a model in host memory over the ranks, and move the rest to the model's device.

    `parameters` are the adapter's. Every rank calls it; from here on they run passes together. Raise ConfigError for
    quantized weights.
    """
    if getattr(model.whole, "is_quantized", False):
        fix = "use the model in 16 bits, or leave model.shard out"
        raise ConfigError("quantized weights are not split over ranks", where="model.shard", fix=fix)
    mesh = DeviceMesh.from_group(dist.new_group(timeout=PASS_LIMIT), model.device.type)
    layers = [layer for _, layer in blocks(model.whole)]
    for layer in layers:
        scalars = {each for each in layer.parameters() if each.ndim == 0}  # which FSDP2 refuses
        # Each block is a root of its own, which FSDP2 would otherwise keep whole after its forward pass.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=scalars | set(parameters.values()))
    model.whole.to(model.device)
    _Passes(model, layers[0], group)


class _Passes:
    """Makes the ranks run the blocks together."""

    def __init__(self, model: Model, first: nn.Module, group: ProcessGroup) -> None:
        self.model, self.group, self.joining = model, group, False
        first.register_forward_pre_hook(self._before, prepend=True)  # before FSDP's own, which waits for all ranks
        model.body.forward = self._guarded(model.body.forward)
        group.run_passes_together(self.join)

    def _before(self, *_: object) -> None:
        if not self.joining:
            self.group.meet(GRADIENT if torch.is_grad_enabled() else FORWARD)

    def _guarded(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The body's forward; whatever it raises is not tried again, as running out of memory is elsewhere."""

        @wraps(forward)
        def run(*args: Any, **options: Any) -> Any:
            try:
                return forward(*args, **options)
            except (SdpoError, PassError):
                raise
            except Exception as error:
                raise PassError(f"{type(error).__name__}: {error}") from error

        return run

    def join(self, kind: str) -> None:
        """Run the body on one token, and back with a gradient of 0; random numbers and results stay as they are."""
        device, self.joining = self.model.device, True
        cards = [torch.cuda.current_device()] if device.type == "cuda" else []
        try:
            with torch.random.fork_rng(cards), torch.set_grad_enabled(kind == GRADIENT):
                ids = torch.zeros((1, 1), dtype=torch.long, device=device)
                states = states_of(self.model.body(input_ids=ids, use_cache=False))
                if kind == GRADIENT:
                    states.backward(torch.zeros_like(states))
        finally:
            self.joining = False
