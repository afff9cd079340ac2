"""Datasets and rewards as a script hands them over."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DataCollatorWithPadding

from rlhf_fast import ForbiddenPhrases, UsageError
from rlhf_fast.rewards.source import RewardBatch
from tests.model_cases import tokens
from tests.tiny_tokenizer import tiny_tokenizer
from tests.trainer.cases import LENGTHS, classifier, likes_even, policy, rows, trainer

datasets = pytest.importorskip("datasets", reason="hands over objects of the package datasets, of the extra data")


def ids_of(tmp_path, dataset, **given) -> list[list[int]]:
    return trainer(tmp_path, train_dataset=dataset, **given).ppo.prompts.ids


def test_token_ids_are_taken_as_they_are(tmp_path):
    assert ids_of(tmp_path, datasets.Dataset.from_list(rows())) == tokens(*LENGTHS)


def test_padding_is_left_out_by_the_attention_mask_though_pad_is_eos(tmp_path):
    padded = [{"input_ids": [2, 2, 2, 7], "attention_mask": [0, 0, 1, 1]}]
    assert ids_of(tmp_path, padded * 8) == [[2, 7]] * 8


@pytest.mark.parametrize(
    ("pad", "side", "padded", "expected"),
    [
        ("w3", "left", [9, 9, 5, 9, 7], [5, 9, 7]),  # inside a prompt it is text
        ("w3", "left", [5, 7, 9, 9], [5, 7]),  # padded at the other side than the tokenizer would
        ("w3", "right", [9, 5, 7, 9, 9], [5, 7]),
        ("<|im_end|>", "left", [2, 2, 5, 7, 2], [5, 7, 2]),  # the EOS at the end belongs to the prompt
        ("<|im_end|>", "right", [2, 5, 7, 2, 2], [2, 5, 7]),
    ],
)
def test_padding_without_a_mask_is_left_out_by_the_pad_id_and_said(tmp_path, caplog, pad, side, padded, expected):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side, tokenizer.pad_token = side, pad
    data = [{"input_ids": padded}] * 7 + [{"input_ids": [5]}]
    assert ids_of(tmp_path, data, processing_class=tokenizer) == [expected] * 7 + [[5]]
    assert (
        f"7 of the 8 prompts of train_dataset began or ended with the pad token {tokenizer.pad_token!r}" in caplog.text
    )
    with pytest.raises(UsageError, match="row 1 of train_dataset has no token"):
        ids_of(tmp_path, [{"input_ids": [tokenizer.pad_token_id] * 3}], processing_class=tokenizer)


def test_a_mask_says_what_is_text_though_it_begins_with_the_pad_token(tmp_path, caplog):
    data = [{"input_ids": [2, 2, 7], "attention_mask": [0, 1, 1]}] * 8
    assert ids_of(tmp_path, data) == [[2, 7]] * 8 and "as padding" not in caplog.text


def test_text_and_chats_are_tokenised_and_other_columns_reach_a_reward_function(tmp_path):
    seen = {}

    def reward(prompts, responses, topic):
        seen.update(prompts=prompts, topic=topic)
        return [0.0] * len(responses)

    texts = [{"prompt": "w7 w8", "topic": "a"}] * 8
    made = trainer(tmp_path, train_dataset=texts, reward_model=reward)
    assert made.ppo.prompts.ids == [tiny_tokenizer()("w7 w8")["input_ids"]] * 8
    made.ppo.step()
    assert seen["prompts"] == ["w7 w8"] * 8 and seen["topic"] == ["a"] * 8
    chat = [{"messages": [{"role": "user", "content": "w7"}, {"role": "assistant", "content": "w9"}]}] * 8
    text = "<|im_start|> user w7 <|im_end|> <|im_start|> assistant "
    assert ids_of(tmp_path, chat) == [tiny_tokenizer()(text)["input_ids"]] * 8


def test_a_collator_of_the_scripts_own_is_asked_and_a_padding_one_is_not_needed(tmp_path):
    def reverse(batch):
        return {"input_ids": torch.tensor([row["input_ids"][::-1] for row in batch])}

    assert ids_of(tmp_path, rows(), data_collator=reverse) == [ids[::-1] for ids in tokens(*LENGTHS)]
    assert ids_of(tmp_path, rows(), data_collator=DataCollatorWithPadding(tiny_tokenizer())) == tokens(*LENGTHS)


def test_a_pad_token_added_without_resizing_the_embeddings_changes_nothing(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 97 == policy().get_input_embeddings().weight.shape[0]
    metrics = [
        trainer(tmp_path, processing_class=own, reward_model=classifier(), options={"stop_token": "eos"}).ppo.step()
        for own in (tokenizer, tiny_tokenizer())
    ]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "train_dataset is empty"),
        ([{"input_ids": [97, 3]}], "row 1 of train_dataset has token id 97 and the model's embeddings have 97 rows"),
        ([{"input_ids": [3]}, {"input_ids": []}], "row 2 of train_dataset has no token"),
        ([{"input_ids": [3] * 60}], "row 1 of train_dataset has 60 tokens and 58 fit"),
        (None, "train_dataset is None"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path, dataset, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, train_dataset=dataset)


def test_a_classifier_scores_the_sampled_ids_at_their_last_token(tmp_path):
    model = classifier()
    sequences = tokens(4, 9, 6)
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([ids])).logits[0, 0] for ids in sequences])
    made = trainer(tmp_path, reward_model=model)
    scores = made.ppo.reward.score(RewardBatch([""] * 3, [""] * 3, sequences)).total
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)


def test_functions_and_reward_sources_are_rewards_under_their_own_names(tmp_path):
    assert "reward/likes_even" in trainer(tmp_path).ppo.step()
    assert "reward/forbidden_phrases" in trainer(tmp_path, reward_model=ForbiddenPhrases(["w7"])).ppo.step()
    assert "reward/reward" in trainer(tmp_path, reward_model=lambda p, r, **_: likes_even(p, r)).ppo.step()


def bert():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=97, num_labels=1, **sizes))


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (bert(), "ClassifierReward"),
        (policy(), "no layer `score`"),
        (torch.nn.Linear(2, 1), "Wrap it in a function"),
        (3, "expected an AutoModelForSequenceClassification"),
        (lambda prompts: [0.0], "cannot be called"),
    ],
)
def test_what_is_no_reward_is_refused(tmp_path, reward, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, reward_model=reward)
