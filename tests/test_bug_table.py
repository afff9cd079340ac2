"""docs/definitions-tested.md has a row for each of the 23 bugs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "docs" / "definitions-tested.md").read_text(encoding="utf-8").splitlines()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in LINES
    if line.startswith("| ") and "---" not in line
]


def test_every_bug_has_a_row_with_a_test_or_says_that_it_does_not_apply():
    rows = {int(row[0]): row[2] for row in ROWS if row[0].isdigit()}
    assert sorted(rows) == list(range(1, 24))
    assert [number for number, tests in rows.items() if "`tests/" not in tests] == [19]
    assert rows[19].startswith("not applicable")


def test_every_definition_has_a_test():
    definitions = [row for row in ROWS if not row[0].isdigit() and row[0] not in ("quantity", "bug")]
    assert len(definitions) >= 15 and all("`tests/" in row[-1] for row in definitions)
