"""Training on tokenised comparisons: it learns, the cut does not matter, and scores are read at the last token."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from rlhf_fast.data.readers import read_comparisons
from rlhf_fast.data.schema import Comparison
from rlhf_fast.model.roles import Critic, sequence_scores
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.comparisons import EncodedComparison, encode_comparison, encode_comparisons
from rlhf_fast.preferences.fit import RewardTraining, add_reward_adapter, evaluate, fit
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model
from tests.preferences.cases import config, rows
from tests.tiny_tokenizer import tiny_tokenizer


def encoded(prompts: int, seed: int = 0) -> list[EncodedComparison]:
    read = read_comparisons(rows(prompts, seed))
    return encode_comparisons(tiny_tokenizer(), read.rows, max_length=64)[0]


def reward_model(head: float = 0.0, **options) -> Critic:
    """`head`: spread of the head's random weights; at 0 the adapter would get no gradient in a first step."""
    torch.manual_seed(1)
    critic = add_reward_adapter(SharedModel(tiny_model()), config(**options))
    critic.head.weight.data.normal_(0, head) if head else None
    return critic


def test_a_learnable_preference_is_learnt_and_holds_for_unseen_prompts():
    critic = reward_model()
    before = evaluate(critic, encoded(12, seed=5))
    assert before.accuracy.value == 0.5  # a fresh head scores everything 0
    history = fit(critic, encoded(48), config())
    after = evaluate(critic, encoded(12, seed=5))
    assert after.accuracy.value == 1.0 and after.accuracy.count == 36
    assert history[-1]["loss"] < 0.2 < history[0]["loss"]
    assert history[-1]["accuracy"] == 1.0
    assert after.longest_wins == before.longest_wins  # a rule does not look at scores


def test_the_first_loss_is_that_of_a_model_that_prefers_nothing():
    critic = reward_model()
    loss, pairs = RewardTraining(config(), critic, encoded(8)).accumulate(encoded(8))
    assert loss == pytest.approx(1.791759, abs=1e-5)  # log 3!
    assert [pair.margin for pair in pairs] == [0.0] * 24


def test_the_gradient_does_not_depend_on_how_a_batch_is_cut():
    results = []
    for budget in (10_000, 40, 1):
        critic = reward_model(head=0.5)
        options = config(max_tokens_per_micro_batch=budget, center_rewards_coefficient=0.5)
        loss, _ = RewardTraining(options, critic, encoded(8)).accumulate(encoded(8))
        results.append((loss, {key: p.grad for key, p in critic.named_parameters()}))
    for loss, gradients in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][key], rtol=1e-4, atol=1e-6, msg=key)
    assert any(float(g.abs().max()) > 1e-3 for key, g in results[0][1].items() if "lora_B" in key)


def test_the_score_is_read_at_the_one_eos_that_ends_a_response_where_pad_is_eos_and_the_prompt_holds_it():
    tokenizer = tiny_tokenizer()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = Comparison("w20 <|im_end|> w21 ", ("w7 w8 <|im_end|>", "w9"), (1, 2))
    comparison = encode_comparison(tokenizer, row, max_length=64)
    eos = tokenizer.eos_token_id
    assert [sequence[-1] for sequence in comparison.sequences] == [eos, eos]
    assert [sequence.count(eos) for sequence in comparison.sequences] == [2, 2]

    critic = reward_model(head=0.5)
    base = tiny_model()  # transformers' own forward of one sequence; a fresh adapter changes nothing
    expected = []
    for sequence in comparison.sequences:
        hidden = base.model(torch.tensor([sequence])).last_hidden_state[0, len(sequence) - 1]
        expected.append((hidden @ critic.head.weight + critic.head.bias).item())
    found = sequence_scores(critic, comparison.sequences, 100)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-4)


def test_every_comparison_is_seen_once_an_epoch_in_a_new_order():
    comparisons = encoded(12)
    training = RewardTraining(config(per_device_train_batch_size=4, num_train_epochs=2), reward_model(), comparisons)
    assert training.steps == 6
    seen = [[comparisons.index(c) for step in epoch for c in training.batch(step)] for epoch in ((0, 1, 2), (3, 4, 5))]
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(12))
    assert seen[0] != seen[1] and seen[0] != list(range(12))


def test_a_pass_leaves_no_comparison_out_and_its_last_step_has_the_rest():
    comparisons = encoded(11)
    training = RewardTraining(config(per_device_train_batch_size=4, num_train_epochs=2), reward_model(), comparisons)
    batches = [training.batch(step) for step in range(training.steps)]
    assert [len(batch) for batch in batches] == [4, 4, 3, 4, 4, 3]
    for half in (batches[:3], batches[3:]):
        assert sorted(comparisons.index(c) for batch in half for c in batch) == list(range(11))


def pairs_of_a_prompt(comparison: EncodedComparison) -> list[EncodedComparison]:
    row, sequences = comparison.row, comparison.sequences
    return [
        EncodedComparison(
            Comparison(row.prompt, (row.responses[i], row.responses[j]), (row.ranks[i], row.ranks[j])),
            comparison.prompt, [sequences[i], sequences[j]],
        )
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip


def test_pairs_of_one_prompt_follow_one_another_wherever_they_stood_and_the_prompts_are_shuffled():
    grouped = [pairs_of_a_prompt(c) for c in encoded(8)]
    scattered = [pairs[i] for i in range(3) for pairs in grouped]
    training = RewardTraining(config(per_device_train_batch_size=3, num_train_epochs=2), reward_model(), scattered)
    batches = [training.batch(step) for step in range(training.steps)]
    assert all(len({c.row.prompt for c in batch}) == 1 for batch in batches)
    orders = [[batch[0].row.prompt for batch in epoch] for epoch in (batches[:8], batches[8:])]
    assert sorted(orders[0]) == sorted(orders[1]) and orders[0] != orders[1]


def test_a_response_in_several_pairs_is_computed_once_and_gives_the_same_gradient(monkeypatch):
    pairs = [pair for c in encoded(4) for pair in pairs_of_a_prompt(c)]
    computed, results = [], []
    values = Critic.values

    def watched(critic, packed):
        computed.append(len(packed.cu_seqlens) - 1)
        return values(critic, packed)

    monkeypatch.setattr(Critic, "values", watched)
    for batches in ([pairs], [[pair] for pair in pairs]):  # together; each pair by itself, with nothing to share
        critic, total = reward_model(head=0.5), 0.0
        training = RewardTraining(config(max_tokens_per_micro_batch=10_000), critic, pairs)
        for batch in batches:
            total += training.accumulate(batch)[0] * len(batch) / len(pairs)
        results.append((total, {key: p.grad * len(batches[0]) / len(pairs) for key, p in critic.named_parameters()}))
    assert computed == [12] + [2] * 12
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for key, gradient in results[0][1].items():
        torch.testing.assert_close(gradient, results[1][1][key], rtol=1e-4, atol=1e-6, msg=key)


def test_centring_keeps_the_mean_score_near_zero():
    means = []
    for coefficient in (0.0, 1.0):
        critic = reward_model(head=0.5)
        critic.head.bias.data.fill_(3.0)
        fit(critic, encoded(24), config(center_rewards_coefficient=coefficient, num_train_epochs=20))
        sequences = [s for c in encoded(24) for s in c.sequences]
        means.append(abs(float(sequence_scores(critic, sequences, 1000).mean())))
    assert means[1] < 0.5 < means[0]


def test_gradient_accumulation_multiplies_the_batch():
    training = RewardTraining(config(gradient_accumulation_steps=3), reward_model(), encoded(48))
    assert len(training.batch(0)) == 24


def test_lora_layers_puts_a_fresh_adapter_on_those_layers_only():
    names = [key for key, _ in reward_model(lora_layers=[1]).named_parameters()]
    assert any(".layers.1." in name for name in names) and not any(".layers.0." in name for name in names)


def with_sft_adapter() -> SharedModel:
    shared = SharedModel(tiny_model())
    shared.add_adapter("sft", LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for parameter in shared.parameters("sft"):
        parameter.data.normal_(0, 0.05)
    return shared


def test_a_copy_of_the_sft_adapter_is_trained_and_the_sft_adapter_stays():
    shared = with_sft_adapter()
    before = {key: p.detach().clone() for key, p in shared.named_parameters("sft")}
    critic = add_reward_adapter(shared, config(lora_r=16, lora_alpha=32), sft="sft")
    copied = {key: p.detach().clone() for key, p in critic.named_parameters() if not key.startswith("head.")}
    assert copied.keys() == before.keys() and all(torch.equal(copied[key], before[key]) for key in before)
    fit(critic, encoded(8), config(num_train_epochs=3))
    assert all(torch.equal(p, before[key]) for key, p in shared.named_parameters("sft"))
    moved = [key for key, p in critic.named_parameters() if key in copied and not torch.equal(p, copied[key])]
    assert len(moved) == len(copied)


def test_a_copy_of_a_reward_model_goes_on_from_its_head():
    shared = SharedModel(tiny_model())
    first = add_reward_adapter(shared, config(), name="first")
    fit(first, encoded(24), config())
    second = add_reward_adapter(shared, config(), sft="first")
    sequences = encoded(2)[0].sequences
    assert torch.equal(sequence_scores(second, sequences, 100), sequence_scores(first, sequences, 100))
    fit(second, encoded(8), config(num_train_epochs=1))
    assert not torch.equal(second.head.weight, first.head.weight)


def test_lora_layers_trains_only_those_layers_of_a_copied_adapter():
    shared = with_sft_adapter()
    critic = add_reward_adapter(shared, config(lora_layers=[1]), sft="sft")
    before = {key: p.detach().clone() for key, p in critic.named_parameters()}
    fit(critic, encoded(8), config(num_train_epochs=3))
    for key, parameter in critic.named_parameters():
        assert torch.equal(parameter, before[key]) == (".layers.0." in key), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 8}, r"lora_r=8 has no effect.*which has 4"),
        ({"lora_alpha": 5}, "lora_alpha=5 has no effect"),
        ({"lora_target_modules": ["q_proj"]}, "lora_target_modules=.* has no effect"),
        ({"lora_layers": [2]}, "decoder layers 0 to 1"),
        ({"lora_layers": []}, "decoder layers 0 to 1"),
    ],
)
def test_lora_choices_that_could_not_be_honoured_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        add_reward_adapter(with_sft_adapter(), config(**options), sft="sft")


def test_comparisons_that_cannot_be_used_are_refused_or_counted():
    tokenizer = tiny_tokenizer()
    long = Comparison("w20", ("w7 " * 20, "w8"), (1, 2))
    with pytest.raises(
        UsageError, match=r"comparison 1 of .*: a prompt with a response has 22 tokens, over max_length=9"
    ):
        encode_comparisons(tokenizer, [long], max_length=9)
    short = Comparison("w20", ("w7", "w8"), (1, 2))
    kept, skipped = encode_comparisons(tokenizer, [long, short], max_length=9, on_bad_row="skip")
    assert [c.row for c in kept] == [short] and len(skipped) == 1
    with pytest.raises(UsageError, match=r"no comparison of .* can be used"):
        encode_comparisons(tokenizer, [long], max_length=9, on_bad_row="skip")
    with pytest.raises(UsageError, match=r"13 responses of one comparison have the same rank; expected 12"):
        encode_comparison(tokenizer, Comparison("w20", ("w7",) * 14, (1.0, *[2.0] * 13)), max_length=64)


def test_nothing_to_train_or_evaluate_on_is_refused():
    with pytest.raises(UsageError, match="no comparisons to train on"):
        fit(reward_model(), [], config())
    tie = encode_comparison(tiny_tokenizer(), Comparison("w20", ("w7", "w8"), (1, 1)), max_length=64)
    with pytest.raises(UsageError, match="has different ranks"):
        evaluate(reward_model(), [tie])
