"""Bad rows stop the reading, or are counted with their reasons; they are never silently lost."""

from __future__ import annotations

import logging

import pytest

from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.runtime.errors import UsageError

ROWS = [{"prompt": "a"}, {"prompt": ""}, {"other": 1}, {"prompt": "b"}]


def test_the_first_bad_row_stops_the_reading_and_names_both_remedies():
    with pytest.raises(UsageError, match=r"^row 2: prompt is empty.* Mend the row, or set on_bad_row=skip"):
        read_prompts(ROWS)


def test_skipped_rows_are_kept_as_reasons_and_counted_in_a_warning(caplog):
    with caplog.at_level(logging.WARNING, logger="rlhf_fast"):
        read = read_prompts(ROWS, on_bad_row="skip")
    assert [row.prompt for row in read.rows] == ["a", "b"]
    assert [reason.partition(":")[0] for reason in read.skipped] == ["row 2", "row 3"]
    assert caplog.messages == [f"skipped 2 bad rows of the given list, kept 2. The first: {read.skipped[0]}."]


def test_good_rows_log_nothing(caplog):
    with caplog.at_level(logging.INFO, logger="rlhf_fast"):
        read_prompts([{"prompt": "a"}])
    assert caplog.messages == []


@pytest.mark.parametrize("rows", [[], [{"prompt": ""}]])
def test_no_good_row_at_all_is_an_error_even_when_skipping(rows):
    with pytest.raises(UsageError, match=rf"no usable row in the given list \({len(rows)} skipped\)"):
        read_prompts(rows, on_bad_row="skip")


def test_comparisons_that_only_tie_are_kept_and_said(caplog):
    rows = [{"prompt": "a", "responses": ["b", "c"], "ranks": ranks} for ranks in ([1, 1], [1, 2])]
    with caplog.at_level(logging.WARNING, logger="rlhf_fast"):
        assert len(read_comparisons(rows).rows) == 2
    assert "1 of 2 comparisons of the given list are ties" in caplog.text


def test_an_unknown_format_lists_those_that_hold_such_rows():
    with pytest.raises(UsageError, match="format 'pandalm' does not hold such rows; expected oasst, sgd"):
        read_demonstrations([{"text": "a"}], format="pandalm")


def test_an_unknown_choice_for_bad_rows_is_refused():
    with pytest.raises(UsageError, match="on_bad_row is 'ignore'; expected raise or skip"):
        read_prompts(ROWS, on_bad_row="ignore")


@pytest.mark.parametrize(
    ("reader", "format", "row"),
    [
        (read_comparisons, "oasst", {"text": "a"}),
        (read_prompts, "oasst", {"prompt": {"role": "prompter", "text": None}}),
        (read_prompts, "oasst", {"prompt": {"role": "narrator", "text": "a"}}),
        (read_comparisons, "pandalm", {"instruction": "a", "response1": "b", "response2": "c", "annotator1": 1}),
        (read_prompts, "pandalm", {"question": "a"}),
        (read_demonstrations, "sgd", {"messages": None}),
    ],
)
def test_a_row_that_a_named_format_does_not_fit_is_a_bad_row(reader, format, row):
    with pytest.raises(UsageError, match=r"^row 1: .*expected"):
        reader([row], format=format)
