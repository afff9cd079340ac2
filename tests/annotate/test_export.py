"""What becomes of votes as training data; and that a reward model trains on it as it is."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_fast import RewardConfig, UsageError, run_reward
from rlhf_fast.annotate.export import Count, Policy, aggregate, export, write_export
from rlhf_fast.annotate.items import Annotator, Item, Vote, make_item
from rlhf_fast.annotate.store import Store
from rlhf_fast.data.readers import read_comparisons
from tests.tiny_tokenizer import tiny_tokenizer


def vote(ranks, who=0, kind="vote") -> Vote:
    return Vote(0, kind, "i", Annotator(who, f"p{who}", "annotator"), list(ranks), False, "", 0.0, [], 0.0)


def room(tmp_path, items: list[Item], votes: list[list], decided: dict[int, list] | None = None) -> Store:
    """A store in which person n votes votes[n][i] on item i (None: not at all)."""
    store = Store.open(tmp_path / "votes.db", create=True)
    store.update_settings(overlap=len(votes), repeats=0.0, checks=0.0)
    store.add_items(items)
    for number, own in enumerate(votes):
        person = store.annotator_of(store.add_annotator(f"person {number}")).id
        said = {item.id: ranks for item, ranks in zip(items, own, strict=True)}
        while task := store.next_item(person):
            ranks = said[task.item.id]
            if ranks is None:
                store.skip(person, task.item.id)
            else:
                store.vote(person, task.item.id, ranks, seconds=3.0)
    boss = store.annotator_of(store.add_annotator("boss", "admin")).id
    for index, ranks in (decided or {}).items():
        store.adjudicate(boss, items[index].id, ranks)
    return store


def pairs(exported) -> list[tuple]:
    return [(row["chosen"], row["rejected"], row.get("probability")) for row in exported.rows]


# By hand


@pytest.mark.parametrize(
    ("count", "drop", "half"),
    [
        (Count(2, 1, 0), (1, 2 / 3), (1, 2 / 3)),
        (Count(1, 2, 3), (2, 2 / 3), (2, 3.5 / 6)),
        (Count(1, 0, 2), (1, 1.0), (1, 2 / 3)),
        (Count(1, 1, 0), (0, 0.0), (0, 0.0)),
        (Count(0, 0, 3), (0, 0.0), (0, 1.0)),
        (Count(1, 1, 2), (0, 0.0), (0, 0.5)),
    ],
)
def test_what_a_count_of_votes_says(count, drop, half):
    assert count.outcome("drop") == pytest.approx(drop)
    assert count.outcome("half") == count.outcome("keep") == pytest.approx(half)


def test_aggregated_ranks_by_hand():
    item = make_item("p", ["a", "b", "c"])
    assert aggregate(item, [vote([2, 1, 3])]) == [2, 1, 3]
    assert aggregate(item, [vote([1, 2, None])]) == [1, 2, None]
    # a beats b 2:1, c beats a 2:1, b beats c 2:1: a circle, all 1/2
    assert aggregate(item, [vote([1, 2, 3]), vote([2, 3, 1]), vote([3, 1, 2])]) == [1, 1, 1]
    # a and b tie twice, c last: a wins one more
    assert aggregate(item, [vote([1, 1, 2]), vote([1, 1, 2]), vote([1, 2, 3])]) == [1, 2, 3]


ITEMS = [
    make_item(f"p{n}", [f"a{n}", f"b{n}"], [{"model": "m1", "seed": n}, {"model": "m2"}], meta={"id": n})
    for n in range(5)
]
A, B, T = [1, 2], [2, 1], [1, 1]
VOTES = [[A, A, T, A, A], [A, B, T, T, B], [A, A, T, T, T]]  # of three people on five items


@pytest.fixture
def store(tmp_path):
    opened = room(tmp_path, ITEMS, VOTES)
    yield opened
    opened.close()


def test_pairs_under_each_policy_for_ties(store):
    a = [(f"a{n}", f"b{n}", None) for n in range(5)]
    dropped = export(store, "pairs", Policy(ties="drop"))
    assert pairs(dropped) == [a[0], a[1], a[3]]
    assert dropped.left_out == {"pairs that all call a tie": 1, "pairs that are even": 1}
    # half: item 3 is a by 2 of 3; item 2 and 4 are even
    assert pairs(export(store, "pairs", Policy(ties="half"))) == [a[0], a[1], a[3]]
    # keep: item 2 is a tie that all call one; of item 4, one a, one b, one tie, most say no tie: left out
    assert pairs(export(store, "pairs", Policy(ties="keep"))) == [a[0], a[1], ("a2", "b2", 0.5), a[3]]


def test_least_agreement_and_least_votes(store):
    assert pairs(export(store, "pairs", Policy(min_agreement=0.6))) == [(f"a{n}", f"b{n}", None) for n in (0, 1, 3)]
    strict = export(store, "pairs", Policy(min_agreement=0.7))  # item 1: 2 of 3; item 3 (drop): the one that is no tie
    assert pairs(strict) == [("a0", "b0", None), ("a3", "b3", None)]
    assert strict.left_out["pairs with too little agreement"] == 1
    assert pairs(export(store, "pairs", Policy(ties="half", min_agreement=0.7))) == [("a0", "b0", None)]
    many = export(store, "pairs", Policy(min_votes=2))
    assert pairs(many) == [("a0", "b0", None), ("a1", "b1", None)]
    assert many.left_out["pairs with too few votes"] == 1


def test_soft_labels_are_shares_of_votes(store):
    said = {row["chosen"]: row["probability"] for row in export(store, "pairs", Policy(ties="half", soft=True)).rows}
    assert said == pytest.approx({"a0": 1.0, "a1": 2 / 3, "a3": 2 / 3})


def test_a_decision_stands_for_all_votes(tmp_path):
    store = room(tmp_path, ITEMS, VOTES, decided={0: B, 2: A})
    rows = {row["provenance"]["id"]: row for row in export(store, "pairs", Policy(min_votes=3)).rows}
    assert (rows[0]["chosen"], rows[2]["chosen"]) == ("b0", "a2")
    assert rows[0]["provenance"]["decided"] and not rows[1]["provenance"]["decided"]
    assert [one["annotator"] for one in rows[0]["provenance"]["said"]] == ["boss"]
    store.close()


def test_provenance_names_models_seeds_people_times_and_what_was_shown(store):
    row = export(store, "pairs").rows[0]["provenance"]
    assert row["sources"] == {"chosen": {"model": "m1", "seed": 0}, "rejected": {"model": "m2"}}
    assert [one["annotator"] for one in row["said"]] == ["person 0", "person 1", "person 2"]
    assert all(sorted(one["shown_order"]) == [0, 1] and one["at"].endswith("+00:00") for one in row["said"])
    hidden = json.dumps(export(store, "pairs", Policy(pseudonyms=True)).rows)
    assert "annotator 1" in hidden and "person" not in hidden
    hidden = json.dumps(export(store, "votes", Policy(pseudonyms=True)).rows)
    assert "annotator 1" in hidden and "person" not in hidden


def test_rankings_of_several_responses(tmp_path):
    items = [make_item(f"p{n}", [f"{c}{n}" for c in "abc"], [{"model": c} for c in "xyz"]) for n in range(4)]
    said = [
        [[1, 2, 3], [1, 2, None], [1, 1, 2], [1, 2, 3]],
        [[1, 3, 2], [1, 2, None], [1, 1, 2], [3, 2, 1]],
    ]
    store = room(tmp_path, items, said)
    rows = {row["prompt"]: row for row in export(store, "ranks", Policy(ties="keep")).rows}
    assert (rows["p0"]["responses"], rows["p0"]["ranks"]) == (["a0", "b0", "c0"], [1, 2, 2])
    assert (rows["p1"]["responses"], rows["p1"]["ranks"]) == (["a1", "b1"], [1, 2])  # nobody ranked c1
    assert rows["p1"]["provenance"]["sources"] == {"responses": [{"model": "x"}, {"model": "y"}]}
    assert rows["p2"]["ranks"] == [1, 1, 2] and "p3" not in rows  # the two votes contradict each other
    plain = export(store, "ranks")
    assert [row["prompt"] for row in plain.rows] == ["p1"] and sum(plain.left_out.values()) == 3
    store.close()


def test_every_vote_with_what_it_was_about(tmp_path):
    store = room(tmp_path, ITEMS, VOTES, decided={1: A})
    rows = export(store, "votes").rows
    assert len(rows) == 16 and [row["event"] for row in rows] == sorted(row["event"] for row in rows)
    assert (rows[0]["prompt"], rows[0]["ranks"], rows[0]["seconds"], rows[0]["meta"]) == ("p0", A, 3.0, {"id": 0})
    assert rows[-1]["kind"] == "decision" and rows[-1]["annotator"] == "boss"
    store.close()


def test_the_test_split_keeps_a_prompt_on_one_side(tmp_path):
    items = [make_item(f"p{n % 10}", [f"a{n}", f"b{n}"]) for n in range(30)]
    store = room(tmp_path, items, [[A] * 30])
    files = write_export(export(store, "pairs"), tmp_path / "out.jsonl", test_fraction=0.3, seed=1)
    assert [file.name for file in files] == ["out.jsonl", "out-test.jsonl"]
    prompts = [{json.loads(line)["prompt"] for line in file.read_text().splitlines()} for file in files]
    assert (len(prompts[0]), len(prompts[1])) == (7, 3) and not prompts[0] & prompts[1]
    store.close()


def test_parquet_holds_what_jsonl_holds(tmp_path):
    chat = [[{"role": "user", "content": f"q{n}"}] for n in range(2)]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    items = [
        make_item(chat[0], ["x", "y"], [{"model": "m", "seed": 3}, {"model": "m", "seed": "three"}], tools=tools),
        make_item(chat[1], ["x", "y"], [{"checkpoint": 1}, {}]),
    ]
    store = room(tmp_path, items, [[A, B]])
    read = []
    for name in ("out.jsonl", "out.parquet"):
        (file,) = write_export(export(store, "pairs"), tmp_path / name)
        read.append([(row.prompt, row.responses, row.ranks, row.tools) for row in read_comparisons(str(file)).rows])
    assert read[0] == read[1] and read[0][0][3] == tools and read[0][1][1] == ("y", "x")
    store.close()


def test_what_cannot_be_written_is_said(tmp_path, store):
    with pytest.raises(UsageError, match=r"jsonl or .parquet"):
        write_export(export(store, "pairs"), tmp_path / "out.csv")
    with pytest.raises(UsageError, match=r"nothing to export.*2 items that are even"):
        write_export(export(room_of_ties(tmp_path), "ranks"), tmp_path / "out.jsonl")
    mixed = [make_item("plain", ["x", "y"]), make_item([{"role": "user", "content": "chat"}], ["x", "y"])]
    (tmp_path / "mixed").mkdir()
    other = room(tmp_path / "mixed", mixed, [[A, A]])
    with pytest.raises(UsageError, match="plain text and the others conversations"):
        write_export(export(other, "pairs"), tmp_path / "out.parquet")
    assert not list(tmp_path.glob("out*"))


def room_of_ties(tmp_path) -> Store:
    (tmp_path / "ties").mkdir()
    return room(tmp_path / "ties", ITEMS[:2], [[T, T]])


# The way on


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "ranks.jsonl", "votes.jsonl"])
def test_a_reward_model_trains_on_an_export_as_it_is(tmp_path, name):
    """Chat prompts whose better answer holds w7: the model learns it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=97, max_position_embeddings=64, initializer_range=0.3, **sizes)
    ).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    items = [
        make_item(
            [{"role": "user", "content": f"w{n} w{n + 1}"}], [f"w{n + 30} w9", f"w7 w{n + 40}"], [{"model": "m"}] * 2
        )
        for n in range(16)
    ]
    store = room(tmp_path, items, [[B] * 16])
    (file,) = write_export(export(store, name.split(".")[0]), tmp_path / name)
    result = run_reward(RewardConfig(
        model_name_or_path=str(tmp_path / "base"), dataset_name=str(file), output_dir=str(tmp_path / "reward"),
        use_cpu=True, dtype="float32", lora_r=4, learning_rate=3e-2, num_train_epochs=6.0, normalise=False,
        per_device_train_batch_size=8, eval_fraction=0.25, disable_tqdm=True,
    ))  # fmt: skip
    assert result.evaluation.accuracy.value == 1.0
    store.close()
