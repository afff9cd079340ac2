"""What a PPO run holds at the peak of each phase, and who holds it, measured while it runs.

    with MemoryProfile(device) as profile:         before the models are opened, so that loading counts too
        ...                                        phases, parts and owners are told by `rlhf_fast.runtime.phases`
        profile.attach(ppo)                        whose the tensors are that are there by then
        ...
    profile.table()                                bytes by phase and owner
    profile.write(folder)                          memory.json; of a CUDA device memory_snapshot.pickle, too

    with memory(trainer) as profile:               the same around `PPOTrainer.train`, printed and written at the end

Two witnesses: `Tracker` sees every tensor and whose it is, and the system keeps the most that the process has had
resident in each phase (on a CUDA device, the allocator of torch). The peak of a phase is the system's; its owners are
those at the moment when the tensors were most. What the two do not share is the process itself, as it was before
(baseline), and slack: what the allocators hold beyond what was asked of them, scratch memory of libraries, compiled
products, Python objects. Slack is negative where memory was asked for and never touched.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from rlhf_fast.model.roles import Policy, ValueModel, tensors_by_owner
from rlhf_fast.profiling.memory_page import write_memory_page
from rlhf_fast.profiling.memory_table import (
    ACTIVATIONS,
    BACKWARD,
    BASE,
    BASELINE,
    BUFFERS,
    DECODE,
    FORWARD,
    GRADIENTS,
    LOAD,
    OPTIMISER,
    PHASES,
    PREFILL,
    SCORING,
    SLACK,
    STEP,
    MemoryTable,
    compare,
    gib,
)
from rlhf_fast.profiling.memory_tracker import Key, Tracker
from rlhf_fast.runtime import phases
from rlhf_fast.runtime.files import write_text
from rlhf_fast.runtime.memory import bytes_of, recent_peak, resident_bytes, restart_peak
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.shown import notices

MEMORY_FILE = "memory.json"
SNAPSHOT_FILE = "memory_snapshot.pickle"
RECORDED = 100_000  # allocations and frees, the last ones
ROW_OF = {"load": LOAD, "rollout": PREFILL, "trunk": SCORING, "scoring": SCORING, "update": FORWARD}
"""The row of the table where a phase begins; the parts that it marks lead on to others."""
OWNER_IN = {LOAD: BASE, STEP: OPTIMISER} | dict.fromkeys((PREFILL, DECODE, SCORING, FORWARD, BACKWARD), ACTIVATIONS)
"""Whose a tensor is that is made in a row and that nobody claims. Outside of all rows: buffers."""
OUTSIDE = "between the phases"
LARGEST = 12
WIDE = 150  # characters
STRETCHES = 400


@dataclass
class Peak:
    """The most of a row: bytes of tensors with their owners and lines then, and of the process."""

    tracked: int = 0
    live: dict[Key, int] = field(default_factory=dict)
    held: int = 0  # by the process, or reserved by the device's allocator
    seconds: float = 0.0  # in all visits, the profile's own time included


@dataclass
class Stretch:
    """The most that was held in a stretch of an iteration, by owner, and in which row that was."""

    row: str
    total: int
    owners: dict[str, int]


@dataclass
class Timeline:
    """An iteration in at most 2 * STRETCHES stretches of `width` seconds; where there would be more, they double."""

    width: float = 1e-3
    stretches: dict[int, Stretch] = field(default_factory=dict)
    seconds: float = 0.0

    def note(self, seconds: float, row: str, total: int, owners: Mapping[str, int]) -> None:
        self.seconds = max(self.seconds, seconds)
        while (place := int(seconds / self.width)) >= 2 * STRETCHES:
            self._double()
        if place not in self.stretches or total > self.stretches[place].total:
            self.stretches[place] = Stretch(row, total, dict(owners))

    @property
    def most(self) -> int:
        return max((stretch.total for stretch in self.stretches.values()), default=0)

    def as_json(self) -> dict[str, Any]:
        """Seconds at which each stretch begins, its row, and bytes by owner."""
        places = sorted(self.stretches)
        owners = {owner for stretch in self.stretches.values() for owner in stretch.owners}
        return {
            "seconds": [round(place * self.width, 6) for place in places],
            "until": self.seconds,
            "phase": [self.stretches[place].row for place in places],
            "bytes": {o: [self.stretches[place].owners.get(o, 0) for place in places] for o in sorted(owners)},
        }

    def _double(self) -> None:
        self.width *= 2
        halves, self.stretches = self.stretches, {}
        for place, stretch in halves.items():
            other = self.stretches.get(place // 2)
            if other is None or stretch.total > other.total:
                self.stretches[place // 2] = stretch


class Roles(Protocol):
    """What is looked at of a PPO run."""

    policy: Policy
    reference: Policy
    critic: ValueModel
    reward: Any
    optimiser: Optimiser


class MemoryProfile:
    """Listens to the marks of a run while it is entered. predicted: what is shown beside what it finds, if anything."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tracker = Tracker(self._on_top)
        self.rows: dict[str, Peak] = {}
        self.row = OUTSIDE
        self.iteration = Timeline()  # the one whose tensors were most, of those that are over
        self._going: Timeline | None = None
        self._last = ""  # phase that began
        self._hooks: list[Any] = []
        self._stack = ExitStack()
        self.restarts = True  # whether the system keeps a peak for each phase
        self.baseline = 0
        self.snapshot: Any = None  # of a CUDA device: every allocation, as torch records them
        self.predicted: MemoryTable | None = None

    def __enter__(self) -> MemoryProfile:
        self.baseline = 0 if self.device.type == "cuda" else resident_bytes()
        self.restarts = restart_peak(self.device)
        self._since = time.perf_counter()
        if self.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=RECORDED)
        for context in (self.tracker, phases.listen(self), phases.watch(self)):
            self._stack.enter_context(context)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()
        if self.device.type == "cuda":
            self.snapshot = torch.cuda.memory._snapshot()
            torch.cuda.memory._record_memory_history(enabled=None)
        self._close()
        self._end_iteration()
        for hook in self._hooks:
            hook.remove()
        self.tracker.forget()

    def attach(self, ppo: Roles) -> None:
        """Say whose the tensors are that are there, and whose gradients are to come."""
        for owner, tensors in owners_of(ppo).items():
            self.tracker.claim(owner, tensors, "parameters and buffers")
        moments = (value for moment in ppo.optimiser.adamw.state.values() for value in moment.values())
        self.tracker.claim(OPTIMISER, (value for value in moments if isinstance(value, Tensor)), "moments")
        trained = ppo.optimiser.parameters
        self._hooks += [parameter.register_post_accumulate_grad_hook(self._gradient) for parameter in trained]

    # -- what the marks tell

    def started(self, phase: str) -> None:
        if self._going is None or (self._last == "update" and phase != "update"):
            self._end_iteration()
            self._going, self._begin = Timeline(), time.perf_counter()
        self._last = phase
        self._turn(ROW_OF.get(phase, OUTSIDE))

    def ended(self, phase: str) -> None:
        self._turn(OUTSIDE)
        if phase == "load":
            self._going = None

    def works(self, flops: float, read: float) -> None:
        pass

    def at(self, part: str) -> None:
        if self.row != OUTSIDE:  # an evaluation between two iterations has parts of the same names
            self._turn(part)

    def holds(self, owner: str, tensors: Iterable[Tensor]) -> None:
        self.tracker.claim(owner, tensors)

    def keeps(self, owner: str, count: int, keeper: object) -> None:
        self.tracker.keep(owner, count, keeper)

    # -- what it found

    def table(self) -> MemoryTable:
        """Bytes by phase and owner; without slack where the system keeps no peak for each phase."""
        table = MemoryTable()
        for row in (row for row in PHASES if row in self.rows):
            peak = self.rows[row]
            for (owner, _), count in peak.live.items():
                table.add(row, owner, count)
            table.add(row, BASELINE, self.baseline)
            if self.restarts:
                table.add(row, SLACK, peak.held - peak.tracked - self.baseline)
        return table

    def largest(self) -> list[tuple[str, str, int]]:
        """Owner, line and bytes of what held most at the peak of the run."""
        live = self.rows[self.table().peak_phase].live
        return [(*key, count) for key, count in sorted(live.items(), key=lambda item: -item[1])[:LARGEST]]

    def now(self) -> dict[str, int]:
        """Bytes of tensors by owner at this moment."""
        return {owner: count for owner, count in self.tracker.by_owner.items() if count}

    def as_json(self) -> dict[str, Any]:
        return {
            "device": self.device.type,
            "measured": self.table().as_json(),
            **({} if self.predicted is None else {"predicted": self.predicted.as_json()}),
            "largest": [dict(zip(("owner", "line", "bytes"), row, strict=True)) for row in self.largest()],
            "baseline": self.baseline,
            "iteration": self.iteration.as_json(),
            "seconds": {row: peak.seconds for row, peak in self.rows.items()},
            OUTSIDE: self.rows[OUTSIDE].held if OUTSIDE in self.rows else 0,
        }

    def write(self, folder: Path) -> None:
        """`memory.json`, whole; of a CUDA device torch's own record as well, which https://docs.pytorch.org/memory_viz
        draws. Raises `OSError` if the disk refuses."""
        write_text(folder / MEMORY_FILE, json.dumps(self.as_json(), indent=1) + "\n")
        if self.snapshot is not None:
            (folder / SNAPSHOT_FILE).write_bytes(pickle.dumps(self.snapshot))

    def print(self) -> None:
        """For the terminal, wide enough for all phases where the output is a file."""
        console = Console()
        if not console.is_terminal:
            console.width = max(console.width, WIDE)
        console.print(self._shown())

    def _shown(self) -> Group:
        largest = Table("holds most at the peak of the run", "asked for by", "GiB", title="Largest")
        for owner, line, count in self.largest():
            largest.add_row(owner, line, gib(count))
        parts: list[Any] = [self.table().table("Memory at the peak of each phase, measured"), largest]
        if self.predicted is not None:
            parts.append(compare(self.predicted, self.table()))
        if not self.restarts:
            parts.append(Text("The system keeps no peak for each phase: tensors and the process before them alone."))
        return Group(*parts)

    # -- helpers

    def _turn(self, row: str) -> None:
        if row == self.row:
            return
        self._close()
        self.row = row
        self.tracker.owner = OWNER_IN.get(row, BUFFERS)

    def _close(self) -> None:
        """End the visit of a row: what it held at most counts, and the system's record starts anew."""
        self._on_top()
        peak = self.rows.setdefault(self.row, Peak())
        peak.held = max(peak.held, recent_peak(self.device))
        peak.seconds += time.perf_counter() - self._since
        if self.restarts:
            restart_peak(self.device)
        self._since = time.perf_counter()

    def _on_top(self) -> None:
        peak, total = self.rows.setdefault(self.row, Peak()), self.tracker.total
        if total > peak.tracked:
            peak.tracked, peak.live = total, dict(self.tracker.live)
        if self._going is not None and self.row != OUTSIDE:
            self._going.note(time.perf_counter() - self._begin, self.row, total, self.tracker.by_owner)

    def _end_iteration(self) -> None:
        if self._going is not None and self._going.most >= self.iteration.most:
            self.iteration = self._going
        self._going = None

    def _gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.tracker.claim(GRADIENTS, [parameter.grad])


def owners_of(ppo: Roles) -> dict[str, list[Tensor]]:
    """What the roles of a run hold, by the owners of a memory table."""
    sources = [getattr(source, "source", source) for source, _ in ppo.reward.sources]  # without what asks again
    models = [getattr(source, "model", None) for source in sources]
    others = [model for model in models if isinstance(model, nn.Module)]
    return tensors_by_owner(ppo.policy, ppo.reference, ppo.critic, others)


@contextmanager
def memory(trainer: Any) -> Iterator[MemoryProfile]:
    """Profile what a `PPOTrainer` does meanwhile; then print the table, and write memory.json and memory.html into its
    `output_dir`.

    Its models are there already: the baseline is the process without them.
    """
    ppo, output = trainer.ppo, Path(str(trainer.args.output_dir))
    with MemoryProfile(ppo.policy.model.device) as profile:
        profile.attach(ppo)
        if profile.baseline:
            profile.baseline -= bytes_of(tensor for tensors in owners_of(ppo).values() for tensor in tensors)
        yield profile
    if not profile.table().bytes:
        notices.warning("no phase of PPO ran meanwhile: there is no memory to show. Call train() or update() within.")
        return
    profile.print()
    output.mkdir(parents=True, exist_ok=True)
    profile.write(output)
    write_memory_page(output, profile.as_json())
