"""Whether a checkpoint is of the run that is to go on, and whether all processes are of one run: what it was told, and
what it may be told differently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from rlhf_fast.runtime.checkpoint import State
from rlhf_fast.runtime.config import Resume, StageConfig, default_of, fields_that_are
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.distributed import gather_parts, world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import without_secrets

_SAMPLE = 1 << 20  # bytes
_CONFIGS = ("config.json", "adapter_config.json", "generation_config.json")
PLACES = ("base_model_name_or_path", "_name_or_path", "transformers_version")
"""What a model's config says of where its files are and who wrote them: nothing depends on it."""


def identity(config: StageConfig, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the result depends on, as JSON gives it back: fields of the config, and `inputs` beside them. It is written
    to files and told in errors: of an address's secrets it has digests."""
    counts: list[Resume] = ["result", "length"]
    if getattr(config, "loss_mean", "token") == "micro":
        counts.append("division")
    names = fields_that_are(type(config), *counts)
    own = {"stage": config.stage, "batch_size": config.batch_size}
    values = own | {name: getattr(config, name) for name in names} | inputs
    return without_secrets(json.loads(json.dumps(values)), digest=True)


def as_told(saved: dict[str, Any], config: StageConfig) -> dict[str, Any]:
    """The identity that an earlier version may have `saved`: a field that came later had its default, and one that was
    found to change no result since then is left out."""
    names, others = (fields_that_are(type(config), *kind) for kind in (("result", "length"), ("free", "rounding")))
    counted = {name: value for name, value in saved.items() if name not in others}
    return json.loads(json.dumps({name: default_of(type(config), name) for name in names})) | counted


def differences(saved: dict[str, Any], own: dict[str, Any]) -> list[str]:
    """Names whose values differ."""
    return sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))


def refuse_another_run(path: Path, saved: dict[str, Any], own: dict[str, Any], config: StageConfig) -> None:
    """Raise `UsageError` naming what differs, unless it is only how long the run of `config` is."""
    length = fields_that_are(type(config), "length")
    names = [name for name in differences(saved, own) if name not in length]
    if names:
        what = "; ".join(f"{name} was {saved.get(name)!r} and is {own.get(name)!r}" for name in names)
        raise UsageError(
            f"{path} is of another run: {what}. Go on with the values that it had, or start another run in another "
            "output_dir."
        )


def fingerprint(rows: Iterable[Any]) -> str:
    """A digest of tokenised rows (lists of numbers and texts), in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=str).encode() + b"\n")
    return digest.hexdigest()[:16]


def weights_fingerprint(folders: Iterable[str | None]) -> str:
    """A digest of what is in model and adapter folders: the configs but for names of places, and of the weight files
    their names, sizes, and a MiB at the start, in the middle and at the end of each. A hub name stands for itself."""
    rows: list[Any] = []
    for folder in folders:
        files = sorted(Path(folder).glob("*.safetensors")) if folder else []
        rows += [[path.name, path.stat().st_size, _sample(path)] for path in files] or [folder]
        rows += [[name, _config(Path(folder, name))] for name in _CONFIGS if folder and Path(folder, name).is_file()]
    return fingerprint(rows)


def _config(path: Path) -> str:
    """The contents of a config file, however they are laid out."""
    text = path.read_text(encoding="utf-8", errors="replace")
    try:
        facts = json.loads(text)
    except ValueError:
        return text
    return json.dumps(
        {k: v for k, v in facts.items() if k not in PLACES} if isinstance(facts, dict) else facts, sort_keys=True
    )


def _sample(path: Path) -> str:
    digest, size = hashlib.sha256(), path.stat().st_size
    with path.open("rb") as file:
        for place in (0, size // 2, max(0, size - _SAMPLE)):
            file.seek(place)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


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
