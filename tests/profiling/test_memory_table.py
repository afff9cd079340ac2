"""The table of bytes by phase and owner: its sums, its peak, and its JSON."""

import io

import pytest
from rich.console import Console

from rlhf_fast.profiling.memory_table import GIB, MemoryTable, Total, compare, gib


@pytest.fixture
def table():
    table = MemoryTable(low={"scoring": 2.5 * GIB}, high={"scoring": 4 * GIB})
    table.add("scoring", "shared base", 2 * GIB)
    table.add("scoring", "activations", GIB)
    table.add("load", "shared base", 2 * GIB)
    return table


def test_a_phase_is_the_sum_of_its_owners_and_the_largest_is_the_peak(table):
    assert table.total("scoring") == Total(2.5 * GIB, 3 * GIB, 4 * GIB)
    assert table.total("load") == Total(2 * GIB, 2 * GIB, 2 * GIB)
    assert table.peak_phase == "scoring" and table.peak.expected == 3 * GIB
    assert table.phases == ["load", "scoring"] and table.owners == ["shared base", "activations"]


def test_a_cell_that_is_given_twice_adds_up(table):
    table.add("load", "shared base", GIB)
    assert table.bytes["load"] == {"shared base": 3 * GIB}
    assert table.total("load").expected == table.peak.expected


@pytest.mark.parametrize("cell", [("loading", "activations"), ("load", "activation")])
def test_a_cell_that_no_table_has_is_refused(table, cell):
    with pytest.raises(ValueError, match="no cell"):
        table.add(*cell, 1)


def test_json_gives_the_same_table_again(table):
    assert MemoryTable.from_json(table.as_json()) == table
    with pytest.raises(ValueError, match="no cell"):
        MemoryTable.from_json({"bytes": {"load": {"nobody": 1}}})


def test_the_comparison_gives_the_error_of_each_phase_and_of_the_peak(table):
    slack = {"allocator slack": 0.5 * GIB, "process baseline": GIB}  # of a phase they are left out
    measured = MemoryTable({"scoring": {"shared base": 2.5 * GIB} | slack, "update forward": {"activations": 5 * GIB}})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(compare(table, measured))
    lines = {line.split("│")[1].strip(): line for line in console.export_text().splitlines() if line.startswith("│")}
    peak = "peak of the run (2.50 to 4.00)"
    assert set(lines) == {"scoring", peak}
    assert "+20.0%" in lines["scoring"]  # 3 for 2.5
    assert "-40.0%" in lines[peak]  # 3 for 5


@pytest.mark.parametrize(
    ("count", "words"), [(0, "-"), (GIB, "1.00"), (10.04 * GIB, "10.0"), (0.0625 * GIB, "0.062"), (9.994 * GIB, "9.99")]
)
def test_sizes_in_gib(count, words):
    assert gib(count) == words
