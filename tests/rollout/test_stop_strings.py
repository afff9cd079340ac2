"""Stop strings end a response at the token that completes one, wherever its pieces lie."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling, StopStrings, stop_strings
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model, tokens
from tests.rollout.byte_tokenizer import byte_ids, byte_tokenizer
from tests.tiny_tokenizer import tiny_tokenizer
from tests.train.cases import run


def completed_at(stop: StopStrings, ids: list[int]) -> int | None:
    """Tokens of the response when it ends."""
    return next((n for n in range(1, len(ids) + 1) if stop.completed_by_last(ids[:n])), None)


@pytest.mark.parametrize(
    ("text", "strings", "kept"),
    [
        ("one. two. three", [". "], "one. "),
        ("a\n\nUser: b", ["\nUser:"], "a\n\nUser:"),
        ("say 終わり now", ["わり"], "say 終わり"),  # three bytes a character
        ("終終終", ["終終"], "終終"),
        ("é🙂é🙂", ["🙂é"], "é🙂é"),
        ("aab", ["aaab", "ab"], "aab"),
        ("nothing", ["thing!"], None),
        ("x" * 50 + "stop", ["stop"], "x" * 50 + "stop"),
    ],
)
def test_the_token_that_completes_a_string_is_the_last_when_each_byte_is_one(text, strings, kept):
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(byte_ids(tokenizer, text)) == text
    end = completed_at(StopStrings(tokenizer, strings), byte_ids(tokenizer, text))
    assert end == (None if kept is None else len(kept.encode()))


def test_a_token_that_holds_more_than_the_end_of_the_string_stays_whole():
    tokenizer = byte_tokenizer("sto", "pping", "<b>")
    ids = [*byte_ids(tokenizer, "a"), *tokenizer.convert_tokens_to_ids(["sto", "pping", "<b>"])]
    assert completed_at(StopStrings(tokenizer, ["stop"]), ids) == 3
    assert completed_at(StopStrings(tokenizer, ["g<"]), ids) == 4
    assert completed_at(StopStrings(tokenizer, ["<eos>"]), [*ids, tokenizer.eos_token_id]) == 5  # as it is written


def test_a_string_is_found_though_the_tokenizer_drops_a_space_in_front_and_spoils_runs_of_bytes():
    """As Llama 2's: a run of byte tokens decodes to replacement characters as long as one is incomplete."""
    pieces = ["<unk>", "▁a", "▁", "b", *(f"<0x{i:02X}>" for i in range(256))]
    core = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    core.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.decode([2, 3]) == "b"
    assert completed_at(StopStrings(tokenizer, [" b"]), [1, 2, 3, 3]) == 3
    run_of_bytes = [4 + byte for byte in "🙂終🙂".encode()]
    assert completed_at(StopStrings(tokenizer, ["終"]), run_of_bytes) == 7
    assert completed_at(StopStrings(tokenizer, ["🙂"]), run_of_bytes[1:]) == 10


def test_a_sampled_response_is_the_free_one_up_to_the_first_stop():
    policy, tokenizer = Policy(SharedModel(tiny_model()), None), tiny_tokenizer()
    prompts, seeds = tokens(*[3] * 12), list(range(12))
    free = generate(policy, prompts, Sampling(8, ()), seeds=seeds)
    strings = [tokenizer.decode(free[0].tokens[3:5]), tokenizer.decode(free[1].tokens[-2:]), "99"]
    stopped = generate(policy, prompts, Sampling(8, (), stop_strings=stop_strings(tokenizer, strings)), seeds=seeds)
    for whole, response in zip(free, stopped, strict=True):
        texts = [tokenizer.decode(whole.tokens[:n]) for n in range(1, 9)]
        first = next((n for n, text in enumerate(texts, 1) if any(s in text for s in strings)), None)
        assert response.tokens == whole.tokens[:first] and response.finished == (first is not None)
        assert response.logprobs == whole.logprobs[:first]
    assert len(stopped[0].tokens) == 5 and stopped[1].finished and len(stopped[1].tokens) == 8  # at the budget
    assert not all(response.finished for response in stopped)


def test_an_empty_string_is_refused_and_none_is_no_stop():
    assert stop_strings(tiny_tokenizer(), []) is None
    with pytest.raises(UsageError, match="one character or more"):
        stop_strings(tiny_tokenizer(), ["a", ""])


def test_ppo_counts_a_response_that_a_string_ends_as_finished(tmp_path):
    ppo = run(
        tmp_path, lambda prompts, responses: [0.0] * len(responses),
        missing_eos_penalty=1.5, stop_token="none", stop=["5"],
    )  # fmt: skip
    rollout = ppo.collect()
    texts = ppo.tokenizer.batch_decode(rollout.responses())
    finished = ["5" in text for text in texts]
    assert any(finished) and not all(finished) and rollout.finished.tolist() == finished
    assert all("5" in text.split()[-1] and "5" not in " ".join(text.split()[:-1]) for text in texts if "5" in text)
    assert ppo.score(rollout).total.tolist() == [0.0 if done else -1.5 for done in finished]
