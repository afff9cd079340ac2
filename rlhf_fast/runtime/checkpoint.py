"""What a run needs to go on as if it had never stopped (`State`), and its place on disk: `checkpoint-STEP` folders that
are whole or not there, and how a damaged one is told.

    state.safetensors   trained parameters, optimiser moments, random states
    state.json          the step, the schedule's place, counters, and what the run was told
    metrics.jsonl       the metrics up to the step
    manifest.json       the SHA-256 of every other file; written last

Beside these lies the model as the stage saves it, so that every stage opens the folder as a model. No file is a pickle.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, temporary_of, write_folder
from rlhf_fast.runtime.tracking import METRICS_FILE


@dataclass
class State:
    """Tensors, and facts that JSON can hold (it gives a float back bit for bit)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Mapping[str, State]) -> State:
        """One state of several; `part` takes them out again. Names of parts hold no "/"."""
        tensors = {f"{name}/{key}": value for name, state in parts.items() for key, value in state.tensors.items()}
        return cls(tensors, {name: state.facts for name, state in parts.items()})

    def copy(self) -> State:
        """One that keeps its values while training goes on."""
        return State({key: value.detach().clone() for key, value in self.tensors.items()}, copy.deepcopy(self.facts))

    def part(self, name: str) -> State:
        """The state that was joined under `name`. Raises `UsageError` if there is none."""
        if name not in self.facts:
            raise UsageError(f"the checkpoint holds {sorted(self.facts)}, not {name!r}; it is of another stage.")
        start = f"{name}/"
        tensors = {key.removeprefix(start): value for key, value in self.tensors.items() if key.startswith(start)}
        return State(tensors, self.facts[name])


class Stateful(Protocol):
    """A part of a run whose state changes while it trains."""

    def state(self) -> State:
        """What `load_state` takes; the tensors may be those that training goes on to change."""
        ...

    def load_state(self, state: State) -> None: ...


class RandomState:
    """The generators that belong to no object, as a part of a run: of GPUs that of the process's own, as many as there
    may be where it is saved or read."""

    def state(self) -> State:
        generator: dict[str, Any] = numpy.random.get_state(legacy=False)  # type: ignore[assignment]
        words = generator["state"].pop("key")
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(words.astype("int64"))}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        return State(tensors, {"python": random.getstate(), "numpy": generator})

    def load_state(self, state: State) -> None:
        version, words, gauss = state.facts["python"]
        random.setstate((version, tuple(words), gauss))
        generator = state.facts["numpy"]
        key = state.tensors["numpy"].numpy().astype("uint32")
        numpy.random.set_state(generator | {"state": generator["state"] | {"key": key}})
        torch.set_rng_state(state.tensors["torch"])
        if torch.cuda.is_available() and "cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["cuda"])


TENSORS, FACTS, MANIFEST = "state.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"checkpoint-\d+")
_TEMPORARY = re.compile(rf"\.{_NAME.pattern}\.tmp")


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used; the message says what is wrong with it."""


def path_of(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("checkpoint-"))


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest step first, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def write_checkpoint(path: Path, state: State, fill: Callable[[Path], None]) -> None:
    """Write `state` and what `fill` writes into the folder that it is given. Raises `UsageError` if the disk refuses;
    older checkpoints are then as they were."""

    def write(folder: Path) -> None:
        fill(folder)
        tensors = {key: value.detach().cpu().contiguous() for key, value in state.tensors.items()}
        save_file(tensors, folder / TENSORS)
        (folder / FACTS).write_text(json.dumps(state.facts) + "\n", encoding="utf-8")
        (folder / MANIFEST).write_text(json.dumps({"sha256": _digests(folder)}, indent=2) + "\n", encoding="utf-8")

    left = "Older checkpoints are whole: go on with resume=auto; a lower save_total_limit takes less room."
    with disk_errors(f"write the checkpoint {str(path)!r}", left):
        write_folder(path, write)


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint's state, joined as `State.join` does."""
    return json.loads((path / FACTS).read_text(encoding="utf-8"))


def read_state(path: Path) -> State:
    """The state in a checkpoint that `verify` found whole."""
    return State(load_file(path / TENSORS), read_facts(path))


def verify(path: Path) -> None:
    """Raise `DamagedCheckpoint` unless the manifest can be read and every file that it names has its SHA-256."""
    try:
        expected = dict(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["sha256"])
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"it has no {MANIFEST}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"its {MANIFEST} cannot be read ({error})") from error
    if unnamed := {TENSORS, FACTS, METRICS_FILE} - set(expected):
        raise DamagedCheckpoint(f"its {MANIFEST} does not name {', '.join(sorted(unnamed))}")
    for name, digest in expected.items():
        if not (path / name).is_file():
            raise DamagedCheckpoint(f"{name} is missing")
        if _digest(path / name) != digest:
            raise DamagedCheckpoint(f"{name} is not what was written: its SHA-256 differs from the manifest's")


def clean(folder: Path, others: Iterable[str]) -> None:
    """Remove the temporary folders and files that interrupted writes and removals of checkpoints, and of the `others`
    by name, left in `folder`. What has another name than these is not ours."""
    named = {temporary_of(folder / name) for name in others}
    for path in folder.glob(".*.tmp"):
        if path.is_symlink() or not (path in named or _TEMPORARY.fullmatch(path.name)):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        elif path in named:
            path.unlink()


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _digest(path) for path in files}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
