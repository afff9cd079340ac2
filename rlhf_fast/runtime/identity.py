"""Whether a checkpoint is of the run that is to go on: what it was told, and what it may be told differently."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_fast.runtime.config import Resume, StageConfig, default_of, fields_that_are
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
    """The identity that an earlier version may have `saved`: a field that came later had its default."""
    names = fields_that_are(type(config), "result", "length")
    return json.loads(json.dumps({name: default_of(type(config), name) for name in names})) | saved


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
