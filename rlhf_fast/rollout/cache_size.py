"""How many sequences are decoded together: as many as their keys and values have memory for."""

from __future__ import annotations

import logging
from functools import cache

import torch

from rlhf_fast.model.packed_decoder import unserved
from rlhf_fast.model.sharding import layer_bytes
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.distributed import gather
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.memory import free_bytes

GB = 10**9
SHARE = 0.5  # of the free memory, where no number of bytes is given


def rows_that_fit(model: SharedModel, length: int, wanted: int, max_gb: float | None = None) -> int:
    """Rows of a `KVCache` for sequences of up to `length` tokens: `wanted`, or as many as fit, which is logged once.

    A row takes `length * bytes_per_token(model)`. All rows together take at most `max_gb` GB, or where that is None
    half of the memory that is free now. Raises `UsageError` where not even one fits.
    """
    row = length * bytes_per_token(model)
    allowed = SHARE * free_bytes(model.device) if max_gb is None else max_gb * GB
    by = "half of the free memory" if max_gb is None else f"max_kv_cache_gb={max_gb:g}"
    fitting = int(allowed // row)
    if fitting == 0:
        raise UsageError(
            f"keys and values of one sequence of up to {length} tokens take {row / GB:.3g} GB, and {by} allows "
            f"{allowed / GB:.3g} GB. Lower response_length, leave out the longest prompts, or raise max_kv_cache_gb."
        )
    if fitting < wanted:
        _announce(fitting, wanted, by)
    return min(fitting, wanted)


def refuse_unfitting(model: SharedModel, length: int) -> None:
    """Raise `UsageError`, in every process, where one has no room for a rollout with the divided layers of `model`
    gathered: what the others hold of them, a packed copy where decoding makes one, and the keys and values of one
    sequence of `length` tokens. Nothing is checked where no layers are divided."""
    if not model.sharded:
        return
    whole, held = layer_bytes(model)
    copied, keys = whole if unserved(model) is None else 0, length * bytes_per_token(model)
    needed = whole - held + copied + keys
    for rank, (need, free) in enumerate(gather(torch.tensor([[needed, free_bytes(model.device)]])).tolist()):
        if need > free:
            raise UsageError(
                f"process {rank} has {free / GB:.3g} GB free on its {model.device.type}, and a rollout needs "
                f"{need / GB:.3g} GB: the layers of the base are gathered whole for it, of which a process holds "
                f"{held / GB:.3g} of {whole / GB:.3g} GB, beside {copied / GB:.3g} GB for a packed copy and "
                f"{keys / GB:.3g} GB for keys and values of one sequence of {length} tokens. Use devices with more "
                "memory or a smaller base, or shorten prompts and responses."
            )


def bytes_per_token(model: SharedModel) -> int:
    """Keys and values of one token in all layers, as a forward writes them: for most architectures 2 * layers *
    key-value heads * head_dim numbers."""
    return model.cache_bytes


@cache
def _announce(fitting: int, wanted: int, by: str) -> None:
    logging.getLogger(__name__).warning(
        "%d sequences are decoded together instead of %d: the keys and values of more exceed %s. The responses are the "
        "same; lower max_rollout_batch or response_length, or raise max_kv_cache_gb.", fitting, wanted, by,
    )  # fmt: skip
