"""Formats, bad rows, the real data sets, and encoding that is the same at training and at generation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_fast.data.encode import encode_demonstration, encode_prompt
from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import Comparison, Demonstration, folds_by_prompt, prompt_key, split_by_prompt
from rlhf_fast.runtime.errors import UsageError
from tests.tiny_tokenizer import tiny_tokenizer

REAL = Path(__file__).parents[3] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data is not beside the checkout ({REAL})")
TURNS = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "completion": "b"}, Demonstration("a", "b")),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, Demonstration(TURNS[:1], "w2")),
        ({"text": "a b"}, Demonstration("", "a b")),
        ({"instruction": "do", "input": "x", "output": "y"}, Demonstration("do\n\nx", "y")),
        ({"instruction": "do", "input": float("nan"), "output": "y"}, Demonstration("do", "y")),
        ({"input": "x", "output": "y"}, Demonstration("x", "y")),
        ({"messages": TURNS}, Demonstration(messages=TURNS)),
        (
            {"conversations": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]},
            Demonstration(messages=TURNS),
        ),
    ],
)
def test_demonstration_formats(row, expected):
    assert read_demonstrations([row]).rows == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, Comparison("a", ("b", "c"), (1, 2))),
        ({"chosen": "hi there good", "rejected": "hi there bad"}, Comparison("hi there ", ("good", "bad"), (1, 2))),
        (
            {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "w3"}]},
            Comparison(TURNS[:1], ("w2", "w3"), (1, 2)),
        ),
        (
            {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [2, 1, 1]},
            Comparison("a", ("b", "c", "d"), (2, 1, 1)),
        ),
    ],
)
def test_comparison_formats(row, expected):
    assert read_comparisons([row]).rows == [expected]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "a", "completion": ""}', "completion is empty"),
        ('{"prompt": "a", "completion": 3}', "expected text"),
        ('{"prompt": "a", ', "not valid JSON"),
        ('{"question": "a"}', "columns are question"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "ends with user"),
    ],
)
def test_a_bad_row_names_file_line_and_reason_or_is_counted(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    with pytest.raises(UsageError, match=rf"rows\.jsonl:2: .*{reason}"):
        read_demonstrations(path)
    read = read_demonstrations(path, on_bad_row="skip")
    assert len(read.rows) == 1 and reason in read.skipped[0]


def test_csv_parquet_and_dataset_sources(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    dataset.to_csv(str(tmp_path / "rows.csv"), index=False)
    expected = [Demonstration("a", "b"), Demonstration("c", "d")]
    for source in (dataset, tmp_path / "rows.parquet", tmp_path / "rows.csv"):
        assert read_demonstrations(source).rows == expected
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert read_demonstrations(tmp_path / "rows.json").rows == expected


def test_a_missing_file_is_named():
    with pytest.raises(UsageError, match=r"no data at 'nowhere\.jsonl'"):
        read_prompts("nowhere.jsonl")


@needs_real
def test_oasst_has_207_ranked_groups_with_732_pairs_once_synthetic_messages_are_dropped():
    rows = read_comparisons(REAL / "oasst_en_100_tree.jsonl", format="oasst").rows
    pairs = sum(sum(a < b for a in row.ranks for b in row.ranks) for row in rows)  # each strictly ordered pair once
    assert (len(rows), pairs) == (207, 732)
    assert {len(row.responses) for row in rows} <= set(range(2, 10))


@needs_real
def test_pandalm_has_993_clean_rows_of_170_prompts():
    read = read_comparisons(REAL / "pandalm_testset-v1.json", format="pandalm", on_bad_row="skip")
    assert (len(read.rows), len(read.skipped)) == (993, 6)
    assert len({prompt_key(row.prompt) for row in read.rows}) == 170


@needs_real
def test_sgd_has_384_dialogues():
    assert len(read_prompts(REAL / "sgd_dialogues.jsonl", format="sgd").rows) == 384


def test_training_sees_the_ids_of_generation_and_learns_only_responses_and_their_end():
    tokenizer = tiny_tokenizer()
    messages = [*TURNS, {"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
    (encoded,) = encode_demonstration(tokenizer, Demonstration(messages=messages), max_length=50)
    prompt = encode_prompt(tokenizer, messages[:3])
    assert encoded.input_ids[: len(prompt)] == prompt
    learnt = [label for label in encoded.labels if label != -100]
    assert tokenizer.convert_ids_to_tokens(learnt) == ["w2", "<|im_end|>", "w4", "<|im_end|>"]
    assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))


def test_what_cannot_be_encoded_says_what_to_do():
    with pytest.raises(UsageError, match="chat_template_path"):
        encode_prompt(tiny_tokenizer(chat=False), TURNS[:1])
    with pytest.raises(UsageError, match=r"3 tokens and 2 fit"):
        encode_prompt(tiny_tokenizer(), "w1 w2 w3", max_length=2)
    with pytest.raises(UsageError, match="empty"):
        encode_prompt(tiny_tokenizer(), "  ")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="EOS"):
        encode_demonstration(tokenizer, Demonstration("w1", "w2"), max_length=9)


def test_splits_keep_a_prompt_on_one_side():
    rows = [Comparison(f"p{i % 10}", ("a", "b"), (1, 2)) for i in range(40)]
    train, held = split_by_prompt(rows, 0.3, seed=1)
    assert len({r.prompt for r in held}) == 3 and not {r.prompt for r in train} & {r.prompt for r in held}
    folds = folds_by_prompt(rows, 5, seed=1)
    assert sorted(len(fold) for fold in folds) == [8] * 5
    assert sum(len({r.prompt for r in fold}) for fold in folds) == 10
