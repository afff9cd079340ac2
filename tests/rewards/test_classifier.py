"""A sequence-classification model as a reward: which ids it sees, and where its score is read."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForSequenceClassification
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from rlhf_fast.rewards.classifier import ClassifierReward
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import CONFIGS, tiny_model
from tests.rewards.cases import OWN_TEMPLATE, decoder, encoder, encoder_tokenizer
from tests.tiny_tokenizer import tiny_tokenizer

CPU = torch.device("cpu")


def batch(*pairs: tuple[str, str], conversations=()) -> RewardBatch:
    prompts, responses = [p for p, _ in pairs], [r for _, r in pairs]
    return RewardBatch(prompts, responses, [[0]] * len(pairs), conversations=list(conversations))


@torch.no_grad()
def encoder_score(model, words: str) -> float:
    """One text alone, its ids by hand: word wN has id 93 - N."""
    ids = [2, *(93 - int(word[1:]) for word in words.split()), 3]
    return float(model(input_ids=torch.tensor([ids])).logits)


@torch.no_grad()
def decoder_score(model, ids: list[int]) -> float:
    hidden = model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(hidden @ model.score.weight[0])


def test_an_encoder_scores_each_text_of_a_padded_batch_as_it_scores_it_alone():
    reward = ClassifierReward("r", encoder(), encoder_tokenizer())
    pairs = [("w1 ", "w2"), ("w3 w4 w5 ", "w6 w7 w8 w9"), ("w1 ", "w3")]
    scores = reward.score(batch(*pairs))
    assert scores.tolist() == pytest.approx([encoder_score(reward.model, p + r) for p, r in pairs], abs=1e-5)
    assert len({round(score, 4) for score in scores.tolist()}) == 3


def test_padding_goes_to_the_right_whatever_the_tokenizer_was_saved_with():
    reward = ClassifierReward("r", encoder(), encoder_tokenizer())
    pairs = [("w1 ", "w2"), ("w3 w4 w5 ", "w6 w7 w8 w9")]
    wanted = reward.score(batch(*pairs)).tolist()
    reward.tokenizer.padding_side = "left"
    assert reward.score(batch(*pairs)).tolist() == wanted


@pytest.mark.parametrize("max_tokens", [2048, 6])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # packed, and padded
def test_a_decoder_is_read_at_its_last_token_though_pad_is_eos_and_the_text_holds_it(family, max_tokens):
    reward = ClassifierReward("r", decoder(family), tiny_tokenizer(), max_tokens=max_tokens)
    assert (reward.packed is not None) == (family == "llama")
    scores = reward.score(batch(("w1 <|im_end|> ", "w2 w3 <|im_end|>"), ("w4 ", "w5 w6")))
    wanted = [decoder_score(decoder(family), ids) for ids in ([7, 2, 8, 9, 2], [10, 11, 12])]
    assert scores.tolist() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("make", [encoder, decoder])
def test_a_tokenizer_without_pad_scores_one_text_at_a_time(make):
    tokenizer = encoder_tokenizer()
    pairs = [("w1 ", "w2"), ("w3 w4 ", "w5 w6")]
    wanted = ClassifierReward("r", make(), tokenizer).score(batch(*pairs))
    tokenizer.pad_token = None
    assert ClassifierReward("r", make(), tokenizer).score(batch(*pairs)).tolist() == pytest.approx(
        wanted.tolist(), abs=1e-5
    )


CONVERSATION = [{"role": "user", "content": "w1 w2"}]


def test_a_conversation_goes_through_the_classifiers_own_template_not_the_policys():
    tokenizer = encoder_tokenizer()
    tokenizer.chat_template = OWN_TEMPLATE
    reward = ClassifierReward("r", encoder(), tokenizer)
    pair = ("<|im_start|> user w1 w2 <|im_end|> <|im_start|> assistant ", "w3")
    (score,) = reward.score(batch(pair, conversations=[CONVERSATION])).tolist()
    with torch.no_grad():  # w50 w1 w2 w51 w3, and no [CLS] or [SEP]: a template has its special tokens itself
        wanted = float(reward.model(input_ids=torch.tensor([[43, 92, 91, 42, 90]])).logits)
    assert score == pytest.approx(wanted, abs=1e-5)


def test_without_a_template_of_its_own_the_contents_of_the_turns_are_its_text():
    reward = ClassifierReward("r", encoder(), encoder_tokenizer())
    pair = ("<|im_start|> user w1 w2 <|im_end|> <|im_start|> assistant ", "w3")
    (score,) = reward.score(batch(pair, conversations=[CONVERSATION])).tolist()
    assert score == pytest.approx(encoder_score(reward.model, "w1 w2 w3"), abs=1e-5)


def test_a_plain_prompt_stays_plain_beside_a_template():
    tokenizer = encoder_tokenizer()
    tokenizer.chat_template = OWN_TEMPLATE
    reward = ClassifierReward("r", encoder(), tokenizer)
    scores = reward.score(batch(("x", "w3"), ("w1 ", "w2"), conversations=[CONVERSATION, None])).tolist()
    assert scores[1] == pytest.approx(encoder_score(reward.model, "w1 w2"), abs=1e-5)


@pytest.mark.parametrize("word", ["w7", "w8"])
def test_the_tools_of_a_conversation_are_shown_to_the_classifiers_template(word):
    tokenizer = encoder_tokenizer()
    tokenizer.chat_template = "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}" + OWN_TEMPLATE
    reward, given = ClassifierReward("r", encoder(), tokenizer), batch(("x", "w3"), conversations=[CONVERSATION])
    given.tools = [[{"type": "function", "function": {"name": word, "parameters": {}}}]]
    (score,) = reward.score(given).tolist()
    ids = [tokenizer.convert_tokens_to_ids(word), 43, 92, 91, 42, 90]
    with torch.no_grad():
        assert score == pytest.approx(float(reward.model(input_ids=torch.tensor([ids])).logits), abs=1e-5)


def test_a_template_that_refuses_a_conversation_says_so():
    tokenizer = encoder_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(
        UsageError, match=r"of reward 'r' refuses a conversation of user, assistant: no system turn.*use another"
    ):
        ClassifierReward("r", encoder(), tokenizer).score(batch(("", "w3"), conversations=[CONVERSATION]))


def test_bos_and_eos_that_stand_in_the_row_are_read_once():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    reward = ClassifierReward("r", decoder(), tokenizer)  # word wN has id N + 6
    plain = reward.score(batch(("<|im_start|> w1 ", "w2"), ("w1 ", "w2")))
    assert plain.tolist() == pytest.approx([decoder_score(decoder(), [1, 7, 8])] * 2, abs=1e-5)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {{ eos_token }} {% endfor %}"
    talk = [
        {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2 <|im_end|>"},
        {"role": "user", "content": "w3"},
    ]  # fmt: skip
    (score,) = reward.score(batch(("", "w4"), conversations=[talk])).tolist()
    assert score == pytest.approx(decoder_score(decoder(), [7, 2, 8, 2, 9, 2, 10, 2]), abs=1e-5)


def test_a_turn_without_text_needs_a_template_that_can_show_what_it_has():
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w9"}}]}
    conversation = [*CONVERSATION, calls, {"role": "tool", "content": "w5"}]
    tokenizer = encoder_tokenizer()
    reward = ClassifierReward("r", encoder(), tokenizer)
    with pytest.raises(UsageError, match="reward 'r' has no chat template, and a turn of the assistant has no text"):
        reward.score(batch(("", "w3"), conversations=[conversation]))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content or m.tool_calls[0].function.name }} {% endfor %}"
    (score,) = reward.score(batch(("", "w3"), conversations=[conversation])).tolist()
    with torch.no_grad():
        wanted = float(reward.model(input_ids=torch.tensor([[92, 91, 84, 88, 90]])).logits)
    assert score == pytest.approx(wanted, abs=1e-5)


def test_of_a_text_over_the_context_the_end_is_scored_and_a_warning_says_so_once(caplog):
    reward = ClassifierReward("judge", encoder(), encoder_tokenizer())
    words = " ".join(f"w{i}" for i in range(40))
    with caplog.at_level(logging.WARNING):
        (score,) = reward.score(batch((words + " ", "w77"))).tolist()
        reward.score(batch((words + " ", "w78")))
    kept = " ".join([f"w{i}" for i in range(11, 40)] + ["w77"])  # 30 words between [CLS] and [SEP]
    assert score == pytest.approx(encoder_score(reward.model, kept), abs=1e-5)
    assert [r.message for r in caplog.records if "judge" in r.message] == [
        "reward 'judge' reads 32 tokens and a prompt with its response has 43: of such texts only the end is scored"
    ]


@pytest.mark.parametrize("limit", [10**30, 20])
def test_the_limit_is_the_smaller_of_context_and_tokenizer(limit):
    assert ClassifierReward("r", encoder(), encoder_tokenizer(limit)).max_length == min(32, limit)


def test_a_saved_classifier_is_opened_and_others_are_refused(tmp_path):
    encoder().save_pretrained(tmp_path / "good")
    encoder_tokenizer().save_pretrained(tmp_path / "good")
    reward = ClassifierReward.load("r", str(tmp_path / "good"), dtype=torch.float32, device=CPU)
    assert reward.score(batch(("w1 ", "w2"))).tolist() == pytest.approx([encoder_score(encoder(), "w1 w2")], abs=1e-5)

    model = tiny_model()
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "language model")
    tiny_tokenizer().save_pretrained(tmp_path / "language model")
    two = encoder()
    two.config.num_labels = 2
    two.classifier = torch.nn.Linear(32, 2)
    two.save_pretrained(tmp_path / "two")
    encoder_tokenizer().save_pretrained(tmp_path / "two")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("language model", "score.weight would be random"),
        ("two", "has 2 outputs; expected one"),
        ("empty", "has no config.json"),
        ("nowhere", "does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            ClassifierReward.load("r", str(tmp_path / name), dtype=torch.float32, device=CPU)


def test_a_soft_cap_is_read_whatever_attention_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setattr(Gemma2PreTrainedModel, "_supports_sdpa", True)  # which leaves the cap out in some versions
    config = copy.deepcopy(CONFIGS["gemma2"])
    config.num_labels, config.pad_token_id, config.initializer_range = 1, 2, 0.4
    config.attn_logit_softcapping = 0.5
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    reward = ClassifierReward.load("r", str(tmp_path), dtype=torch.float32, device=CPU)
    ids = [7, 8, 9, 10, 11]
    wanted = decoder_score(model, ids)
    assert reward.score(batch(("w1 w2 w3 ", "w4 w5"))).tolist() == pytest.approx([wanted], abs=1e-5)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert abs(decoder_score(model, ids) - wanted) > 1e-3
