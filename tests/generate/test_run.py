"""A generation from its config: the file with responses that a stop string ends, and values that are refused."""

from __future__ import annotations

import json

import pytest

from rlhf_fast import EvaluateConfig, GenerateConfig, PPORunConfig, UsageError, run_generate
from tests.model_cases import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer(chat=False).save_pretrained(folder)
    return str(folder)


def test_the_file_has_responses_up_to_the_word_that_completes_a_stop_string(model, tmp_path):
    def responses(**options) -> list[dict]:
        config = GenerateConfig(
            model_path=model, prompts=["w1 w2", "w3"], num_responses=6, response_length=8, temperature=1.0,
            use_cpu=True, dtype="float32", output_file=str(tmp_path / "responses.jsonl"), **options,
        )  # fmt: skip
        return [json.loads(line) for line in run_generate(config).read_text().splitlines()]

    free, stopped = responses(), responses(stop=["w5", "w62"])
    for whole, row in zip(free, stopped, strict=True):
        words = whole["response"].split()
        end = next((i for i, word in enumerate(words) if "w5" in word or "w62" in word), None)
        assert row["response"].split() == (words if end is None else words[: end + 1])
        assert row["finished"] == (whole["finished"] or end is not None)
    assert sum(row["finished"] for row in free) + 2 < sum(row["finished"] for row in stopped) < 12


@pytest.mark.parametrize("config", [GenerateConfig, EvaluateConfig, PPORunConfig])
def test_values_that_cannot_be_used_are_refused(config):
    with pytest.raises(UsageError, match=r"stop=\['a', ''\] cannot be used: expected strings of one character"):
        config(stop=["a", ""], use_cpu=True)
    with pytest.raises(UsageError, match="stop='a' cannot be used: expected a list"):
        config(stop="a", use_cpu=True)
    with pytest.raises(UsageError, match="max_kv_cache_gb=0 cannot be used: expected a number above 0"):
        config(max_kv_cache_gb=0, use_cpu=True)
