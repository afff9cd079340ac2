"""Bytes by phase and owner: what a plan predicts and what a memory profile measures, in one form.

PHASES, OWNERS   the rows and columns, in the order in which they are shown
MemoryTable      bytes[phase][owner] at the peak of each phase, as a table for the terminal or as JSON
compare          predicted beside measured, phase by phase
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

LOAD, PREFILL, DECODE, SCORING = "load", "rollout prefill", "rollout decode", "scoring"
FORWARD, BACKWARD, STEP = "update forward", "update backward", "optimiser step"
PHASES = (LOAD, PREFILL, DECODE, SCORING, FORWARD, BACKWARD, STEP)

BASE, OTHER_MODELS = "shared base", "other models"
POLICY, CRITIC, REWARD = "policy adapter", "critic adapter and head", "reward adapter and head"
GRADIENTS, OPTIMISER, ACTIVATIONS, KV_CACHE = "gradients", "optimiser", "activations", "KV cache"
PACKED, WORKSPACE, BUFFERS = "packed weights", "log-prob workspace", "buffers"
SLACK, BASELINE = "allocator slack", "process baseline"
OWNERS = (
    BASE, OTHER_MODELS, POLICY, CRITIC, REWARD, GRADIENTS, OPTIMISER, ACTIVATIONS, KV_CACHE, PACKED, WORKSPACE, BUFFERS,
    SLACK, BASELINE,
)  # fmt: skip
"""Other models: a policy that is trained whole, a reward classifier, a critic or reference on a base of its own.
Buffers: the rollout's columns, the states of the trunk, a copy to give up an update. Slack: what the allocator holds
beyond what was asked for. Baseline: the process with its libraries before a model is opened."""

GIB = 2**30


@dataclass(frozen=True)
class Total:
    """Bytes of a phase: expected, and between which two numbers they should lie. Measured: all three are one."""

    low: float
    expected: float
    high: float


@dataclass
class MemoryTable:
    """bytes[phase][owner]: who holds what at the moment of the phase's peak; a phase or owner may be absent.

    low, high: of the totals of phases, where they are predicted; a phase without them is known exactly.
    """

    bytes: dict[str, dict[str, float]] = field(default_factory=dict)
    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)

    def add(self, phase: str, owner: str, count: float) -> None:
        """Add `count` bytes to one cell. Raises `ValueError` for a phase or owner that is not one of the table's."""
        if phase not in PHASES or owner not in OWNERS:
            raise ValueError(f"no cell ({phase!r}, {owner!r}) in a memory table")
        row = self.bytes.setdefault(phase, {})
        row[owner] = row.get(owner, 0) + count

    def total(self, phase: str) -> Total:
        expected = sum(self.bytes.get(phase, {}).values())
        return Total(self.low.get(phase, expected), expected, self.high.get(phase, expected))

    def asked(self, phase: str) -> float:
        """What was asked for in a phase: all but slack and the process itself."""
        return sum(count for owner, count in self.bytes[phase].items() if owner not in (SLACK, BASELINE))

    @property
    def phases(self) -> list[str]:
        """Those that are there, in order."""
        return [phase for phase in PHASES if phase in self.bytes]

    @property
    def owners(self) -> list[str]:
        """Those that hold something in some phase, in order."""
        return [owner for owner in OWNERS if any(row.get(owner) for row in self.bytes.values())]

    @property
    def peak_phase(self) -> str:
        """The phase with the largest expected total. Raises `ValueError` for an empty table."""
        return max(self.phases, key=lambda phase: self.total(phase).expected)

    @property
    def peak(self) -> Total:
        return self.total(self.peak_phase)

    def table(self, title: str) -> Table:
        """For the terminal, in GiB: a row for each owner, a column for each phase; the peak's column is bold."""
        shown = Table("GiB", title=title)
        peak = self.peak_phase
        for phase in self.phases:
            shown.add_column(phase, justify="right", style="bold" if phase == peak else "")
        for owner in self.owners:
            shown.add_row(owner, *(gib(self.bytes[phase].get(owner, 0)) for phase in self.phases))
        shown.add_section()
        totals = [self.total(phase) for phase in self.phases]
        shown.add_row("all", *(gib(total.expected) for total in totals))
        if self.low or self.high:
            shown.add_row("low to high", *(f"{gib(total.low)} to {gib(total.high)}" for total in totals), style="dim")
        return shown

    def as_json(self) -> dict[str, Any]:
        """Plain numbers of bytes; `from_json` reads it again."""
        facts: dict[str, Any] = {"bytes": {phase: dict(self.bytes[phase]) for phase in self.phases}}
        if self.low or self.high:
            facts |= {"low": dict(self.low), "high": dict(self.high)}
        return facts | ({"peak_phase": self.peak_phase, "peak": self.peak.expected} if self.bytes else {})

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> MemoryTable:
        """Of what `as_json` gave. Raises `ValueError` for a phase or owner that is not one of the table's."""
        table = cls(low=dict(facts.get("low", {})), high=dict(facts.get("high", {})))
        for phase, row in facts["bytes"].items():
            for owner, count in row.items():
                table.add(phase, owner, count)
        return table


def compare(predicted: MemoryTable, measured: MemoryTable) -> Table:
    """predicted | measured | error: for each phase that both have, of what is asked for in it (what is resident then
    tells of the phase before it, too); for the run, of the most that is resident."""
    shown = Table("asked for in", title="Predicted and measured, GiB")
    for column in ("predicted", "measured", "error"):
        shown.add_column(column, justify="right")
    for phase in (phase for phase in predicted.phases if phase in measured.phases):
        shown.add_row(phase, *_beside(predicted.asked(phase), measured.asked(phase)))
    shown.add_section()
    most = predicted.peak
    cells = _beside(most.expected, measured.peak.expected)
    shown.add_row(f"peak of the run ({gib(most.low)} to {gib(most.high)})", *cells, style="bold")
    return shown


def _beside(predicted: float, measured: float) -> tuple[str, str, str]:
    return gib(predicted), gib(measured), f"{predicted / measured - 1:+.1%}" if measured else "-"


def gib(count: float) -> str:
    """Bytes as GiB, with three significant digits for small numbers; nothing is '-'."""
    size = count / GIB
    return "-" if not count else f"{size:.1f}" if size >= 10 else f"{size:.2f}" if size >= 0.995 else f"{size:.3f}"
