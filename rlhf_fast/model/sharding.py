"""A frozen base whose decoder layers are divided among the processes: each holds a part of every layer.

torch's `fully_shard` (FSDP2) gathers a layer's weights for its forward and again for its backward, and frees them.
Embeddings, the last norm and the language-model head are read outside the layers, and stay whole in every process.

A gather waits for all processes, so all have to run the same passes through the model in the same order. Whatever runs
micro-batches does so `in_step`; decoding, which takes as many steps as its responses have tokens, runs on layers that
have been `gathered`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from rlhf_fast.runtime.distributed import exchange, max_over_processes, world_size
from rlhf_fast.runtime.errors import UsageError

if TYPE_CHECKING:
    from rlhf_fast.model.shared import SharedModel

MicroBatch = TypeVar("MicroBatch")


def shard_base(model: SharedModel, device: torch.device) -> None:
    """Divide the decoder layers of `model`, whole on the CPU and without adapters, and move it to `device`, in place.

    A layer at a time goes to the device. Raises `UsageError` for an architecture whose layers are not known.
    """
    if not hasattr(FSDPModule, "set_custom_all_gather"):
        raise UsageError(f"shard_base needs a newer torch than {torch.__version__}; 2.13 is one that serves.")
    if not model.decoder_layers:
        raise UsageError(f"the decoder layers of {type(model.base).__name__} are not known; set shard_base=False.")
    mesh = init_device_mesh(device.type, (world_size(),))
    layers = [cast(FSDPModule, fully_shard(layer, mesh=mesh)) for layer in model.decoder_layers]
    whole = {parameter for parameter in model.backbone.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(model.backbone, mesh=mesh, ignored_params=whole)
    for below, layer in zip([layers[0], *layers], layers, strict=False):  # else guessed from the passes before
        layer.set_modules_to_backward_prefetch([below])
        layer.set_custom_all_gather(Gather())  # type: ignore[arg-type]
    for parameter in model.base.parameters():
        if not isinstance(parameter, DTensor):  # on a CPU it may keep the file of the whole base in memory
            parameter.data = parameter.data.clone()
    model.base.to(device)  # type: ignore[arg-type]
    model.sharded = layers
    with torch.no_grad():  # settles which module is the root
        model.hidden(torch.zeros(1, dtype=torch.int64, device=model.device), [0, 1], None)


@contextmanager
def gathered(model: SharedModel) -> Iterator[None]:
    """Within it every process has all layers whole, and passes through `model` wait for nobody."""
    for layer in model.sharded:
        layer.set_reshard_after_forward(False, recurse=False)
        layer.unshard()
    try:
        yield
    finally:
        for layer in model.sharded:
            layer.reshard()
            layer.set_reshard_after_forward(True, recurse=False)


def in_step(model: SharedModel, own: Sequence[MicroBatch], spare: MicroBatch) -> Iterator[tuple[MicroBatch, float]]:
    """Each of `own`, with the weight 1. Where layers are divided, then `spare`, with 0, until all had as many.

    What a process does with a micro-batch must run the same passes in all of them, backward included; what comes of
    `spare` is to be left out.
    """
    missing = max_over_processes(len(own)) - len(own) if model.sharded else 0
    yield from ((micro_batch, 1.0) for micro_batch in own)
    yield from [(spare, 0.0)] * missing


class Gather:
    """The exchange inside `fully_shard`, as torch has it, but for what is raised where a process is lost."""

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        with exchange():
            return dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=async_op)


def layer_bytes(model: SharedModel) -> tuple[int, int]:
    """Bytes of the divided layers, and of what this process holds of them between passes."""
    divided = [p for layer in model.decoder_layers for p in layer.parameters() if isinstance(p, DTensor)]
    return sum(p.nbytes for p in divided), sum(p.to_local().nbytes for p in divided)
