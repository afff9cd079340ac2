"""Whether all processes of a run are of the same one: its config, data and models before these are opened, and what is
trained before the first step."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.distributed import gather_parts, world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.identity import differences
from rlhf_fast.runtime.state import State


def refuse_disagreement(own: dict[str, Any]) -> None:
    """Raise `UsageError`, in every process, naming the first whose values of `own` (of JSON's kinds) differ from those
    of process 0, and in what."""
    if world_size() == 1:
        return
    text = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8)
    first, *others = [json.loads(bytes(part.tolist())) for part in gather_parts(text)]
    for rank, other in enumerate(others, 1):
        if names := differences(first, other):
            what = "; ".join(f"{name} is {other.get(name)!r}, on process 0 {first.get(name)!r}" for name in names)
            raise UsageError(
                f"process {rank} is of another run than process 0: {what}. Start all processes with the same command, "
                "and let them read the same files."
            )


def computation(config: StageConfig) -> dict[str, Any]:
    """Where and how a run of `config` computes on this node."""
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device, train_base=not config.use_peft)
    return {"the device": device.type, "the dtype of the base": str(dtype), "shard_base": config.shard_base}


def refuse_other_weights(state: State) -> None:
    """As `refuse_disagreement`, for the tensors of `state` (what is trained) before the first step."""
    if world_size() > 1:
        refuse_disagreement({"the initial weights": _digest(state)})


def _digest(state: State) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(state.tensors.items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
