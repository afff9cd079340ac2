"""The same cases under pytest-benchmark: `pytest benchmarks/ --benchmark-only`."""

from __future__ import annotations

import pytest

from rlhf_fast.bench.cases import COLUMNS, OPERATIONS

SMALL = (64, 64, 512)  # rows, hidden size, vocabulary


def _cases():
    for op, (make, _) in OPERATIONS.items():
        shape = COLUMNS[0] if len(OPERATIONS[op][1][0]) == 2 else SMALL
        yield from (pytest.param(make, shape, name, id=f"{op}-{name}") for name in make(*shape).variants)


@pytest.mark.parametrize("make, shape, name", _cases())
def test_speed(benchmark, make, shape, name):
    benchmark(make(*shape).variants[name])
