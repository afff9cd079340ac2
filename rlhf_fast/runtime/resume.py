"""Where a run starts: from the beginning, from a checkpoint, or not at all because it is finished.

`choose_start` is asked before models are opened, and refuses what cannot go on; the loop (`rlhf_fast.runtime.loop`)
takes the steps that are left, on what `Checkpoints` (`rlhf_fast.runtime.saving`) restores.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_fast.runtime.checkpoint import DamagedCheckpoint, list_checkpoints, read_facts, step_of, verify
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.distributed import from_main, gather
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.identity import (
    as_told,
    computation,
    differences,
    identity,
    refuse_another_run,
    refuse_disagreement,
)

FINISHED = "run.json"
ENDED_EARLY = "ended_early_after_step"  # in that file, where a callback ended the run
Held = Callable[[Path], dict[str, Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run starts: at the checkpoint `path`, which is whole, at the beginning (None), or not at all."""

    identity: dict[str, Any]
    path: Path | None = None
    finished: bool = False


def choose_start(config: StageConfig, inputs: dict[str, Any], held: Held | None = None) -> Start:
    """What `config.resume` asks for; `inputs` is what the result depends on beside the config. Changes nothing.

    held: what inputs would be if what a checkpoint holds were given, by its path, for those that may be either that or
    what the run began with. Of several processes, process 0 looks, as the folder may be on its node only, and all start
    where it says. Raises `UsageError` for processes of different runs, for a checkpoint of another run, for a path that
    holds no whole checkpoint, where a run that was cut off would be overwritten, and where another process sees a newer
    checkpoint.
    """
    own, output = identity(config, inputs), Path(str(config.output_dir))
    refuse_disagreement(own | computation(config) | {"resume": config.resume})
    if config.resume == "auto":
        _refuse_hidden(output)

    def look() -> list[Any]:
        start = _choose(config, output, own, held)
        return [start.identity, start.path and str(start.path), start.finished]

    begun_with, path, finished = from_main(look)
    return Start(begun_with, path and Path(path), finished)


def _choose(config: StageConfig, output: Path, own: dict[str, Any], held: Held | None) -> Start:
    if config.resume is None:
        _refuse_overwriting(output)
        return Start(own)
    if config.resume != "auto":
        return _from_path(Path(config.resume), output, own, held, config)
    if (done := _finished(output)) is not None:
        newest, ended = next(iter(list_checkpoints(output)), None), done.pop(ENDED_EARLY, None)
        done = as_told(done, config)
        own = _fitting(output / FINISHED, done, own, held, newest, config)
        if ended is not None:
            logger.warning("a callback ended the run in %s after step %d; it goes on now", output, ended)
        elif not differences(done, own):
            logger.warning("the run in %s is finished already: there is nothing to resume", output)
            return Start(own, finished=True)
    return _from_newest(output, own, held, config)


def _refuse_hidden(output: Path) -> None:
    own = max(map(step_of, list_checkpoints(output)), default=0)
    newest = gather(torch.tensor([own])).tolist()
    if max(newest) > newest[0]:
        where = newest.index(max(newest))
        raise UsageError(
            f"process {where} sees checkpoint-{newest[where]} in {output}, and process 0, which reads and writes that "
            "folder, none as new. Start the node that holds it as the first (torchrun --master-addr ... --node-rank 0; "
            "with --rdzv-backend c10d any node may be the first), or share the folder among the nodes."
        )


def _refuse_overwriting(output: Path) -> None:
    there = list_checkpoints(output)
    if there and _finished(output) is None:
        raise UsageError(
            f"{output} holds checkpoints of a run that was cut off ({there[0].name}). Go on with resume=auto, choose "
            "another output_dir, or delete that folder."
        )


def _from_path(path: Path, output: Path, own: dict[str, Any], held: Held | None, config: StageConfig) -> Start:
    try:
        verify(path)
    except DamagedCheckpoint as error:
        raise UsageError(
            f"resume={str(path)!r} cannot be used: {error}. Give a whole checkpoint folder, or resume=auto."
        ) from error
    if path.resolve().parent != output.resolve():
        _refuse_overwriting(output)
    saved = as_told(read_facts(path)["run"]["identity"], config)
    return Start(_fitting(path, saved, own, held, path, config), path)


def _from_newest(output: Path, own: dict[str, Any], held: Held | None, config: StageConfig) -> Start:
    """The newest whole checkpoint; a damaged one is reported and passed over."""
    damaged: list[str] = []
    for path in list_checkpoints(output):
        try:
            verify(path)
        except DamagedCheckpoint as error:
            damaged.append(f"{path} is damaged: {error}")
            continue
        saved = as_told(read_facts(path)["run"]["identity"], config)
        own = _fitting(path, saved, own, held, path, config)
        _report(damaged, f"{path.name} is used instead")
        return Start(own, path)
    _report(damaged, "there is no whole one, so the run starts from the beginning")
    return Start(own)


def _fitting(
    source: Path,
    saved: dict[str, Any],
    own: dict[str, Any],
    held: Held | None,
    checkpoint: Path | None,
    config: StageConfig,
) -> dict[str, Any]:
    """`own`, with what the run of `saved` began with where what the checkpoint holds was given instead. Raises
    `UsageError` for another run, which is named by `source`."""
    differ = [name for name in differences(saved, own) if name in saved]
    if differ and held is not None and checkpoint is not None:
        there = held(checkpoint)
        own = own | {name: saved[name] for name in differ if name in there and there[name] == own.get(name)}
    refuse_another_run(source, saved, own, config)
    return own


def _report(damaged: list[str], instead: str) -> None:
    for what in damaged:
        logger.warning("%s; %s", what, instead)


def _finished(output: Path) -> dict[str, Any] | None:
    """What the finished run in `output` was told, None where none is finished."""
    try:
        return json.loads((output / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
