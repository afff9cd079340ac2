"""A prompt never stands on both sides of a split."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_fast.data.schema import Comparison, PromptRow, folds_by_prompt, prompt_key, split_by_prompt
from rlhf_fast.runtime.errors import UsageError


def rows_of(prompts):
    return [Comparison(prompt, (f"a{i}", "b"), (1, 2)) for i, prompt in enumerate(prompts)]


def keys(rows):
    return {prompt_key(row.prompt) for row in rows}


PROMPTS = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=30).filter(lambda prompts: len(set(prompts)) > 1)


@given(PROMPTS, st.floats(0.01, 0.99), st.integers(0, 5))
def test_the_sides_share_no_prompt_and_lose_no_row(prompts, fraction, seed):
    rows = rows_of(prompts)
    train, held = split_by_prompt(rows, fraction, seed)
    assert train and held and not keys(train) & keys(held)
    assert sorted(train + held, key=rows.index) == rows
    assert train == [row for row in rows if row in train]


@given(PROMPTS, st.integers(2, 8), st.integers(0, 5))
def test_folds_share_no_prompt_lose_no_row_and_are_even(prompts, folds, seed):
    rows = rows_of(prompts)
    if folds > len(keys(rows)):
        with pytest.raises(UsageError, match=f"cannot make {folds} folds of {len(keys(rows))}"):
            folds_by_prompt(rows, folds, seed)
        return
    parts = folds_by_prompt(rows, folds, seed)
    counts = [len(keys(part)) for part in parts]
    assert sum(counts) == len(keys(rows)) and max(counts) - min(counts) <= 1
    assert sorted((row for part in parts for row in part), key=rows.index) == rows


def test_a_quarter_of_the_prompts_is_held_out_however_many_rows_each_has():
    train, held = split_by_prompt(rows_of([p for p in "abcdefgh" for _ in range(ord(p) % 3 + 1)]), 0.25, seed=0)
    assert (len(keys(train)), len(keys(held))) == (6, 2)


def test_the_seed_alone_decides_not_the_order_of_the_rows():
    rows = rows_of("abcdefghabcdefgh")
    held = [keys(split_by_prompt(rows, 0.4, seed)[1]) for seed in range(9)]
    assert [keys(split_by_prompt(rows[::-1], 0.4, seed)[1]) for seed in range(9)] == held
    assert len({frozenset(side) for side in held}) > 1


def test_conversations_are_grouped_by_all_their_messages():
    first, second = [{"role": "user", "content": "a"}], [{"role": "user", "content": "b"}]
    train, held = split_by_prompt([PromptRow(p) for p in (first, second, first, second)], 0.5, seed=0)
    assert len(train) == len(held) == 2 and not keys(train) & keys(held)
    assert prompt_key([{"role": "user", "content": "a\nuser: b"}]) != prompt_key([*first, *second])


@pytest.mark.parametrize(("prompts", "fraction"), [("ab", 0), ("ab", 1), ("aa", 0.5), ("", 0.5)])
def test_a_split_with_an_empty_side_is_refused(prompts, fraction):
    with pytest.raises(UsageError, match=f"cannot hold out {fraction} of {len(set(prompts))} prompts"):
        split_by_prompt(rows_of(prompts), fraction, seed=0)
