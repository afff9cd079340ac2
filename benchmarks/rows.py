"""What a measurement of the kernels gives, as it stands in a table, a CSV file and a plot."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One variant of one case."""

    op: str
    shape: str
    variant: str
    times_ours: float  # its time over that of the first backend, which is 1
    times_floor: float | None  # over that of bare products of the same shapes
    percent_of_limit: float  # 100: as fast as the machine's rates allow
    milliseconds: float  # median, on this machine on that day
    rounds: int
    note: str
