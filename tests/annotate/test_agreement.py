"""Agreement and rankings against values worked out by hand, PandaLM's own votes, and annotators of known quality."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from rlhf_fast import UsageError
from rlhf_fast.annotate.agreement import (
    alpha,
    annotator_figures,
    check_accuracy,
    disagreement,
    fleiss_kappa,
    kappa,
    outcomes,
    position_bias,
    self_consistency,
)
from rlhf_fast.annotate.export import aggregate
from rlhf_fast.annotate.items import Annotator, Item, Vote, make_item
from rlhf_fast.annotate.ranking import leaderboard
from rlhf_fast.annotate.reading import read_items

PANDALM = Path(__file__).parents[3] / "shared" / "data" / "pandalm_testset-v1.json"
needs_pandalm = pytest.mark.skipif(not PANDALM.exists(), reason="PandaLM's test set is not beside the project")


def vote(item: str, who: int, ranks, order=None, kind="item", of=None, seconds=9.0, all_bad=False) -> Vote:
    annotator = Annotator(who, f"person {who}", "annotator")
    order = list(range(len(ranks))) if order is None else order
    return Vote(0, "vote", item, annotator, list(ranks), all_bad, "", seconds, order, 0.0, kind, of)


def votes(*rows: str) -> list[Vote]:
    """Rows of items with two responses: 1 (the first wins), 2 or 0 (a tie) of each annotator, . where there is none."""
    ranks = {"1": [1, 2], "2": [2, 1], "0": [1, 1]}
    return [
        vote(f"i{i}", who, ranks[said]) for i, row in enumerate(rows) for who, said in enumerate(row) if said != "."
    ]


# By hand


def test_outcomes_of_ranks():
    assert outcomes([1, 2, 2]) == {(0, 1): 1, (0, 2): 1, (1, 2): 0}
    assert outcomes([3, None, 1]) == {(0, 2): 2}
    assert outcomes([None, None]) == {}


def test_disagreement_of_an_item():
    a, b, tie = (vote("i", who, ranks) for who, ranks in enumerate(([1, 2], [2, 1], [1, 1])))
    assert disagreement([a, a]) == 0.0 and disagreement([a, b]) == 1.0 and disagreement([a, tie]) == 0.5
    assert disagreement([a, a, b]) == pytest.approx(2 / 3)
    assert disagreement([a]) == 0.0 == disagreement([vote("i", 0, [1, 2, None]), vote("i", 1, [None, 2, 1])])


def test_fleiss_kappa_of_fleiss_own_example():
    """Fleiss 1971, as in every text book: 10 subjects, 14 raters, 5 categories, kappa 0.210."""
    counts = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    assert fleiss_kappa(counts) == pytest.approx(0.2099, abs=5e-5)
    with pytest.raises(UsageError, match="all as many"):
        fleiss_kappa([(2, 0), (1, 0)])
    with pytest.raises(UsageError, match="same value"):
        fleiss_kappa([(2, 0), (2, 0)])


def test_alpha_nominal_by_hand():
    """Two annotators, four items: 11, 22, 12, 11. Coincidences o11 = 4, o22 = 2, o12 = o21 = 1, n = 8, n1 = 5, n2 = 3:
    alpha = 1 - (n - 1) * o12 / (n1 * n2) = 1 - 7 / 15 (Krippendorff 2011)."""
    found = alpha(votes("11", "22", "12", "11"))
    assert found.value == pytest.approx(8 / 15) and found.count == 4 and found.low <= found.value <= found.high


def test_alpha_ordinal_by_hand():
    """Three responses in one item, ranked 1 2 3 and 1 3 2: each response is a unit. Values 1 1, 2 3, 3 2: o11 = 2,
    o23 = o32 = 2, margins 2, 2, 2, n = 6. Squared ordinal distances: d12 = d23 = (2 + 2 - 2)^2 = 4, d13 = (6 - 2)^2
    = 16. alpha = 1 - (n - 1) (o23 d23) / (n1 n2 d12 + n1 n3 d13 + n2 n3 d23) = 1 - 5 * 8 / (16 + 64 + 16)."""
    found = alpha([vote("i", 0, [1, 2, 3]), vote("i", 1, [1, 3, 2])], "ordinal")
    assert found.value == pytest.approx(1 - 40 / 96)
    same = [vote("i", 0, [1, 2, 3]), vote("i", 1, [1, 5, 9])]  # gaps in ranks say nothing
    assert alpha(same, "ordinal").value == pytest.approx(1.0)


def test_alpha_is_none_where_it_is_not_defined():
    assert alpha([]) is None and alpha(votes("1.", ".1")) is None and alpha(votes("11", "11")) is None


def test_alpha_interval_narrows_with_items():
    few, many = alpha(votes(*["11", "22", "12", "11"] * 5)), alpha(votes(*["11", "22", "12", "11"] * 80))
    assert few.high - few.low > 2 * (many.high - many.low) > 0.02


def test_kappa_is_of_pairs_with_that_many_votes():
    found = kappa(votes("11", "22", "12", "1."), 2)
    # three items: observed (1 + 1 + 0) / 3, shares 1/2 and 1/2, expected 1/2
    assert found.value == pytest.approx((2 / 3 - 1 / 2) / (1 / 2)) and found.count == 3
    assert kappa(votes("11", "11"), 2) is None and kappa(votes("1."), 2) is None


def test_position_bias_is_of_what_was_shown():
    assert position_bias([vote("i", 0, [1, 2], [0, 1])]).value == 1.0
    assert position_bias([vote("i", 0, [1, 2], [1, 0])]).value == 0.0
    # of three: shown c a b, ranked a > b > c: a before b right, c before a and c before b wrong: a third
    assert position_bias([vote("i", 0, [1, 2, 3], [2, 0, 1])]).value == pytest.approx(1 / 3)
    assert position_bias([vote("i", 0, [1, 1])]) is None
    half = position_bias([vote(f"i{n}", 0, [1, 2], [n % 2, 1 - n % 2]) for n in range(100)])
    assert half.value == 0.5 and half.count == 100 and half.low == pytest.approx(0.4038, abs=1e-3)  # Wilson


def test_self_consistency_compares_repeats_with_the_same_persons_answer():
    first = [vote("a", 0, [1, 2]), vote("b", 0, [1, 2]), vote("c", 0, [1, 2]), vote("a", 1, [2, 1])]
    again = [
        vote("r1", 0, [1, 2], kind="repeat", of="a"), vote("r2", 0, [2, 1], kind="repeat", of="b"),
        vote("r3", 0, [1, 1], kind="repeat", of="c"), vote("r4", 1, [2, 1], kind="repeat", of="a"),
    ]  # fmt: skip
    found = self_consistency(first + again)
    assert (found.value, found.count) == (pytest.approx((1 + 0 + 0.5 + 1) / 4), 4)
    assert self_consistency(first) is None


def test_check_accuracy_counts_what_was_not_ranked_as_wrong():
    check = make_item("p", ["x", "y", "z"], answer=[1, 2, 3])
    items = {check.id: check}
    assert check_accuracy([vote(check.id, 0, [1, 2, 3], kind="check")], items).value == 1.0
    assert check_accuracy([vote(check.id, 0, [1, 2, None], kind="check")], items).value == pytest.approx(1 / 3)
    assert check_accuracy([vote(check.id, 0, [None] * 3, kind="check", all_bad=True)], items).value == 0.0
    assert check_accuracy([vote(check.id, 0, [2, 1, 3], kind="check")], items).value == pytest.approx(2 / 3)


# Who looks careless


def room(quality: list[float], items: int, seed: int = 0, left: float = 0.5) -> tuple[dict[str, Item], list[Vote]]:
    """Annotators who say what is right with these probabilities, on items of which the first response is the better."""
    draw, found, said = random.Random(seed), {}, []
    for number in range(items):
        item = make_item(f"p{number}", ["good " * 20, "bad " * 20], [{"model": "A"}, {"model": "B"}])
        found[item.id] = item
        for who, right in enumerate(quality):
            order = [0, 1] if draw.random() < 0.5 else [1, 0]
            said.append(vote(item.id, who, [1, 2] if draw.random() < right else [2, 1], order, seconds=20.0))
    return found, said


def test_somebody_who_guesses_is_flagged_and_those_who_read_are_not():
    items, said = room([0.95, 0.9, 0.9, 0.5], 300)
    flags = [one.flags for one in annotator_figures([v.annotator for v in said[:4]], said, items, {})]
    assert flags[:3] == [[], [], []] and [flag.split(":")[0] for flag in flags[3]] == ["others"]


def test_somebody_who_always_takes_the_left_fails_checks_or_races_is_flagged():
    asked = [make_item(f"p{n}", ["x" * 400, "y" * 600]) for n in range(40)]
    checks = [make_item(f"c{n}", ["x", "y"], answer=[1, 2]) for n in range(4)]
    items = {item.id: item for item in (*asked, *checks)}
    orders = [[0, 1], [1, 0]] * 20
    left = [
        vote(item.id, 0, [1, 2] if order[0] == 0 else [2, 1], order, seconds=1.0)
        for item, order in zip(asked, orders, strict=True)
    ]
    wrong = [vote(check.id, 0, [2, 1], kind="check") for check in checks]
    repeated = [vote(f"r{n}", 0, left[n].ranks[::-1], kind="repeat", of=left[n].item_id) for n in range(6)]
    items |= {one.item_id: asked[0] for one in repeated}
    (found,) = annotator_figures([left[0].annotator], [*left, *wrong, *repeated], items, {0: 7})
    assert (found.votes, found.skips, found.seconds) == (40, 7, 1.0) and found.characters_a_second == 1000.0
    assert [flag.split(":")[0] for flag in found.flags] == ["check questions", "repeats", "position", "speed"]


def test_a_few_votes_flag_nobody():
    items, said = room([0.0, 1.0], 5)
    assert all(not one.flags for one in annotator_figures([v.annotator for v in said[:2]], said, items, {}))


# Leaderboard


def sourced(names: str, ranks_of: list[list[int | None]]) -> tuple[dict[str, Item], list[Vote]]:
    """Items whose responses come from the sources that these letters name, each with one vote."""
    items = [make_item(f"p{n}", list(names.lower()), [{"model": c} for c in names]) for n in range(len(ranks_of))]
    return {i.id: i for i in items}, [vote(i.id, 0, ranks) for i, ranks in zip(items, ranks_of, strict=True)]


def test_bradley_terry_of_two_sources_is_the_log_odds():
    items, said = sourced("AB", [[1, 2]] * 6 + [[2, 1]] * 2)
    board = leaderboard(items, said)
    assert [one.source for one in board.standings] == ["A", "B"] and board.model == "bradley-terry"
    assert board.standings[0].strength.value == pytest.approx(math.log(3) / 2, abs=1e-6)
    assert board.standings[0].win_rate == pytest.approx(0.75) and board.notes == []
    assert (board.standings[0].wins, board.standings[0].ties, board.standings[0].losses) == (6, 0, 2)
    low, high = board.standings[0].strength.low, board.standings[0].strength.high
    assert low < math.log(3) / 2 < high


def test_a_tie_is_half_a_win_for_either():
    board = leaderboard(*sourced("AB", [[1, 2]] * 4 + [[1, 1]] * 4))
    assert board.standings[0].strength.value == pytest.approx(math.log(3) / 2, abs=1e-6)  # 6 to 2


def test_plackett_luce_of_whole_rankings():
    """Of two rankings A > B > C and one C > B > A: strengths of the maximum, found here by a grid of one unknown less:
    with all three in every ranking the likelihood depends on ratios only; checked by its gradient being 0."""
    items, said = sourced("ABC", [[1, 2, 3], [1, 2, 3], [3, 2, 1]])
    board = leaderboard(items, said, resamples=0)
    assert board.model == "plackett-luce"
    s = {one.source: math.exp(one.strength.value) for one in board.standings}
    total = sum(s.values())
    # d/dlog s_B: two rankings choose B second of B, C; one chooses it second of A, B; minus its chances
    gradient_b = 3 - 3 * s["B"] / total - 2 * s["B"] / (s["B"] + s["C"]) - s["B"] / (s["A"] + s["B"])
    gradient_a = 2 - 3 * s["A"] / total - s["A"] / (s["A"] + s["B"])
    assert gradient_b == pytest.approx(0, abs=1e-4) and gradient_a == pytest.approx(0, abs=1e-4)


def test_a_tie_in_a_ranking_counts_half_in_either_order():
    tied = leaderboard(*sourced("ABC", [[1, 2, 2], [2, 1, 1]]), resamples=0)
    both = leaderboard(*sourced("ABC", [[1, 2, 3], [1, 3, 2], [3, 2, 1], [3, 1, 2]]), resamples=0)
    strengths = [{one.source: one.strength.value for one in board.standings} for board in (tied, both)]
    assert strengths[0] == pytest.approx(strengths[1], abs=1e-6)
    assert strengths[0]["B"] == pytest.approx(strengths[0]["C"], abs=1e-6)


def test_what_was_never_compared_is_said_and_ranked_apart():
    one, said = sourced("AB", [[1, 2]] * 3 + [[2, 1]])
    other, more = sourced("CD", [[1, 2], [2, 1]])
    board = leaderboard(one | other, said + more)
    assert [(s.source, s.group) for s in board.standings] == [("A", 1), ("B", 1), ("C", 2), ("D", 2)]
    assert "2 groups" in board.notes[0]


def test_a_source_that_won_everything_has_a_finite_strength_and_a_note():
    board = leaderboard(*sourced("AB", [[1, 2]] * 5))
    assert (
        math.isfinite(board.standings[0].strength.value)
        and "A" in board.notes[0]
        and "regularisation" in board.notes[0]
    )


def test_sources_without_a_name_or_of_one_name_say_nothing():
    items, said = sourced("AA", [[1, 2]])
    assert leaderboard(items, said).standings == []
    items, said = sourced("AAB", [[1, 2, 3], [3, 1, 2]])  # pairs of different sources only: 3 wins of A, 1 of B
    board = leaderboard(items, said, resamples=0)
    assert board.model == "bradley-terry" and board.standings[0].strength.value == pytest.approx(math.log(3) / 2)


# PandaLM


def pandalm_rows() -> list[dict]:
    rows = json.loads(PANDALM.read_text())
    assert len(rows) == 999
    return rows


@needs_pandalm
def test_pandalms_own_three_votes_agree_with_kappa_0_864():
    counts = [[[row[f"annotator{n}"] for n in (1, 2, 3)].count(value) for value in (0, 1, 2)] for row in pandalm_rows()]
    assert round(fleiss_kappa(counts), 3) == 0.864
    said = [
        vote(f"i{number}", n, {0: [1, 1], 1: [1, 2], 2: [2, 1]}[row[f"annotator{n}"]])
        for number, row in enumerate(pandalm_rows()) for n in (1, 2, 3)
    ]  # fmt: skip
    assert round(kappa(said, 3).value, 3) == 0.864
    found = alpha(said, resamples=100)
    assert found.value == pytest.approx(0.864, abs=1e-3) and found.low < 0.864 < found.high  # nearly kappa, at n = 999


@needs_pandalm
def test_simulated_annotators_on_pandalms_items_recover_the_true_order_of_the_models():
    """Six annotators whose chance of saying what is true is Bradley-Terry's, two of them careless, each on half of the
    items: the leaderboard puts the five models in their true order, and its intervals hold the true strengths."""
    items = read_items(str(PANDALM), format="pandalm", on_bad_row="skip")
    assert len(items) == 993
    truth = {"llama-7b": 1.2, "bloom-7b": 0.6, "opt-7b": 0.0, "pythia-6.9b": -0.6, "cerebras-gpt-6.7B": -1.2}
    draw, said = random.Random(5), []
    for item in items:
        first, second = (truth[source["model"]] for source in item.sources)
        for who in draw.sample(range(6), 3):
            chance = 0.5 if who >= 4 and draw.random() < 0.1 else 1 / (1 + math.exp(second - first))
            said.append(vote(item.id, who, [1, 2] if draw.random() < chance else [2, 1]))
    by_id = {item.id: item for item in items}
    board = leaderboard(by_id, said)
    assert [one.source for one in board.standings] == list(truth)
    assert sum(one.strength.low <= truth[one.source] <= one.strength.high for one in board.standings) >= 4


@needs_pandalm
@pytest.mark.parametrize(("quality", "people", "at_least"), [(0.7, 1, 0.65), (0.7, 5, 0.8), (0.9, 5, 0.97)])
def test_more_annotators_recover_the_true_preference_of_more_items(quality, people, at_least):
    """With each right with probability p, the majority of 5 is right with 0.837 for p = 0.7 and 0.991 for p = 0.9."""
    items = read_items(str(PANDALM), format="pandalm", on_bad_row="skip")
    draw, right, decided = random.Random(7), 0, 0
    for item in items:
        true = draw.choice(([1, 2], [2, 1]))
        given = [vote(item.id, who, true if draw.random() < quality else true[::-1]) for who in range(people)]
        found = aggregate(item, given)
        decided, right = decided + 1, right + (found == true)
    expected = sum(
        math.comb(people, k) * quality**k * (1 - quality) ** (people - k) for k in range(people // 2 + 1, people + 1)
    )
    assert right / decided >= at_least and right / decided == pytest.approx(expected, abs=0.04)
