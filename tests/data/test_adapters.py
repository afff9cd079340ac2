"""Trees, votes and dialogues, in small by hand and on the real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import Comparison, Demonstration, prompt_key

REAL = Path(__file__).parents[3] / "shared" / "data"
OASST, PANDALM, SGD = (REAL / f for f in ("oasst_en_100_tree.jsonl", "pandalm_testset-v1.json", "sgd_dialogues.jsonl"))
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="the real data sets are not beside the checkout")


def node(role, text, *replies, rank=None, synthetic=False):
    return {"role": role, "text": text, "rank": rank, "synthetic": synthetic, "replies": list(replies)}


def user(text):
    return {"role": "user", "content": text}


TREE = {
    "prompt": node(
        "prompter", "q",
        node("assistant", "worse", node("prompter", "why?", node("assistant", "so", rank=0)), rank=1),
        node("assistant", "best", rank=0),
        node("assistant", "machine", node("prompter", "lost"), rank=2, synthetic=True),
        node("assistant", "unranked"),
    )
}  # fmt: skip
WHY = [user("q"), {"role": "assistant", "content": "worse"}, user("why?")]


def test_a_tree_compares_the_ranked_human_siblings():
    assert read_comparisons([TREE], format="oasst").rows == [Comparison([user("q")], ("worse", "best"), (1.0, 0.0))]


def test_a_tree_demonstrates_the_best_reply_to_each_prompter_message():
    rows = read_demonstrations([TREE], format="oasst").rows
    assert rows == [Demonstration([user("q")], "best"), Demonstration(WHY, "so")]


def test_a_tree_prompts_with_each_human_path_and_nothing_below_a_synthetic_message():
    assert [row.prompt for row in read_prompts([TREE], format="oasst").rows] == [[user("q")], WHY]
    synthetic = {"prompt": {**TREE["prompt"], "synthetic": True}}
    assert len(read_prompts([TREE, synthetic], format="oasst").rows) == 2


def pandalm(votes, **columns):
    votes = {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
    row = {"idx": 7, "instruction": "do", "input": "", "response1": "a", "response2": "b", **votes, **columns}
    return read_comparisons([row], format="pandalm").rows[0]


def test_three_votes_become_a_probability_and_other_columns_are_kept():
    row = pandalm([1, 1, 0])
    assert (row.prompt, row.responses, row.ranks) == ([user("do")], ("a", "b"), (1, 2))
    assert row.probability == pytest.approx(2.5 / 3)
    assert row.meta == {"idx": 7}
    assert pandalm([2, 0, 0]).probability == pytest.approx(1 / 3)


def test_an_input_that_is_nan_is_no_input_and_an_empty_response_is_one():
    assert pandalm([1, 1, 1], input=float("nan")).prompt == [user("do")]
    assert pandalm([1, 1, 1], input="this").prompt == [user("do\n\nthis")]
    assert pandalm([1, 1, 1], response2="").responses == ("a", "")


def raw_trees(keep_synthetic: bool):
    """(ranked sibling groups, implied pairs, replies) counted from the raw file."""
    groups = pairs = replies = 0
    stack = [json.loads(line)["prompt"] for line in OASST.read_text(encoding="utf-8").splitlines()]
    while stack:
        message = stack.pop()
        stack += message["replies"]
        kept = [m for m in message["replies"] if m["role"] == "assistant" and (keep_synthetic or not m["synthetic"])]
        ranked = sum(m.get("rank") is not None for m in kept)
        replies += len(kept)
        groups += ranked > 1
        pairs += ranked * (ranked - 1) // 2
    return groups, pairs, replies


@needs_real
def test_oasst_has_207_groups_and_732_pairs_of_human_replies():
    assert raw_trees(keep_synthetic=True) == (212, 754, 687)
    assert raw_trees(keep_synthetic=False) == (207, 732, 670)
    rows = read_comparisons(OASST, format="oasst").rows
    assert len(rows) == 207
    assert sum(a < b for row in rows for a in row.ranks for b in row.ranks) == 732
    assert all(len(set(row.ranks)) == len(row.ranks) == len(row.responses) for row in rows)
    assert {len(row.responses) for row in rows} == {2, 3, 4, 5, 6, 8, 9}


@needs_real
def test_oasst_has_475_human_prompts_of_which_249_have_a_reply():
    assert len(read_prompts(OASST, format="oasst").rows) == 475  # 480 prompter messages, 5 of them synthetic
    assert len(read_demonstrations(OASST, format="oasst").rows) == 249


@needs_real
def test_pandalm_has_993_clean_rows_of_170_prompts_with_the_share_of_the_raw_votes():
    rows = read_comparisons(PANDALM, format="pandalm", on_bad_row="skip").rows
    assert (len(rows), len({prompt_key(row.prompt) for row in rows})) == (993, 170)
    raw = {row["idx"]: row for row in json.loads(PANDALM.read_text(encoding="utf-8"))}
    for row in rows:
        votes = [raw[row.meta["idx"]][f"annotator{i}"] for i in (1, 2, 3)]
        halves = {1: 2, 2: 0, 0: 1}  # half votes for the first response
        assert row.probability == pytest.approx(sum(halves[vote] for vote in votes) / 6)
        assert (row.ranks[0] - row.ranks[1] < 0) == (votes.count(1) > votes.count(2))
    assert sum(row.probability != 0.5 for row in rows) == 908


@needs_real
def test_the_response_with_more_distinct_words_wins_as_often_as_the_majority_of_pandalm_says():
    rows = read_comparisons(PANDALM, format="pandalm", on_bad_row="skip").rows
    raw = {row["idx"]: row for row in json.loads(PANDALM.read_text(encoding="utf-8"))}
    agreed = []
    for row in rows:
        votes = [raw[row.meta["idx"]][f"annotator{i}"] for i in (1, 2, 3)]
        if max(votes.count(1), votes.count(2)) >= 2:
            first, second = (len(set(response.split())) for response in row.responses)
            agreed.append(0.5 if first == second else float((first > second) == (votes.count(1) >= 2)))
    assert len(agreed) == 888
    assert sum(agreed) / len(agreed) == pytest.approx(0.703, abs=5e-4)


@needs_real
def test_pandalm_names_each_row_that_it_leaves_out():
    read = read_comparisons(PANDALM, format="pandalm", on_bad_row="skip")
    assert [reason.split(":")[0].rpartition(" ")[2] for reason in read.skipped] == [
        "158", "159", "160", "162", "163", "165",
    ]  # fmt: skip
    assert all("expected two texts" in reason for reason in read.skipped)


@needs_real
def test_sgd_dialogues_end_with_the_assistant_and_prompt_with_what_comes_before():
    demonstrations, prompts = read_demonstrations(SGD, format="sgd").rows, read_prompts(SGD, format="sgd").rows
    assert len(demonstrations) == len(prompts) == 384
    assert all(row.messages[:-1] == prompt.prompt for row, prompt in zip(demonstrations, prompts, strict=True))
    assert prompts[0].columns == {"dialogue_id": "1_00000", "services": ["Restaurants_1"]}
