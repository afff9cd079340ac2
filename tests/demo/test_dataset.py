"""The bundled data is what its README says."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import prompt_key
from rlhf_fast.demo.data import load_rows, write_files

ROWS = load_rows()


def share_where_more_wins(measure) -> float:
    wins = []
    for row in ROWS:
        ranked = sorted(zip(row["ranks"], row["responses"], strict=True))
        for (_, better), (_, worse) in combinations(ranked, 2):
            a, b = measure(better), measure(worse)
            wins.append(0.5 if a == b else float(a > b))
    return sum(wins) / len(wins)


def test_480_prompts_of_24_businesses_with_three_ranked_replies_of_at_most_60_words():
    assert len(ROWS) == len({prompt_key(row["prompt"]) for row in ROWS}) == 480
    assert len({row["business"] for row in ROWS}) == 24 and len({row["tone"] for row in ROWS}) == 10
    for row in ROWS:
        assert sorted(row["ranks"]) == [1, 2, 3] and len(set(row["responses"])) == 3
        assert all(5 <= len(response.split()) <= 60 for response in row["responses"])


def test_the_splits_are_by_prompt_and_even_over_businesses():
    assert Counter(row["split"] for row in ROWS) == {"heldout": 144, "train_proxy": 168, "train_gold": 168}
    assert set(Counter((row["business"], row["split"]) for row in ROWS).values()) == {6, 7}


def test_position_length_and_distinct_words_do_not_give_the_rank_away():
    first = Counter(row["ranks"][0] for row in ROWS)
    assert all(120 <= first[rank] <= 200 for rank in (1, 2, 3))
    assert 0.4 <= share_where_more_wins(lambda text: len(text.split())) <= 0.6
    assert 0.4 <= share_where_more_wins(lambda text: len(set(text.lower().split()))) <= 0.6


def test_the_written_files_are_read_back_with_the_middle_reply_as_demonstration(tmp_path):
    files = write_files(tmp_path)
    demonstrations = read_demonstrations(files.demonstrations).rows
    middle = {row["responses"][row["ranks"].index(2)] for row in ROWS if row["split"] != "heldout"}
    assert {row.completion for row in demonstrations} == middle and len(demonstrations) == 336
    parts = [
        read_comparisons(p).rows for p in (files.proxy_comparisons, files.gold_comparisons, files.heldout_comparisons)
    ]
    keys = [{prompt_key(row.prompt) for row in part} for part in parts]
    assert [len(part) for part in keys] == [168, 168, 144] and len(set.union(*keys)) == 480
    assert {prompt_key(row.prompt) for row in read_prompts(files.prompts).rows} == keys[0] | keys[1]
