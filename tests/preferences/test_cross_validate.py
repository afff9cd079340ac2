"""Cross-validation: no fold sees its own prompts, every pair is judged once, and cached states change nothing."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from rlhf_fast.data.readers import read_comparisons
from rlhf_fast.data.schema import Comparison, prompt_key
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.roles import Critic, sequence_scores
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.trunk import TrunkCache
from rlhf_fast.preferences import cross_validate as module
from rlhf_fast.preferences.comparisons import EncodedComparison, encode_comparisons
from rlhf_fast.preferences.cross_validate import Folds, accuracy_over_prompts, cross_validate
from rlhf_fast.preferences.fit import add_reward_adapter, evaluate, fit
from rlhf_fast.preferences.metrics import Pair
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model
from tests.preferences.cases import config, rows
from tests.tiny_tokenizer import tiny_tokenizer


def encoded(prompts: int, seed: int = 0, rename: str = "") -> list[EncodedComparison]:
    data = [row | {"prompt": rename + row["prompt"]} for row in rows(prompts, seed)]
    return encode_comparisons(tiny_tokenizer(), read_comparisons(data).rows, max_length=64)[0]


def keys(comparisons: list[EncodedComparison]) -> set[str]:
    return {prompt_key(c.row.prompt) for c in comparisons}


def pairwise(comparison: EncodedComparison) -> list[EncodedComparison]:
    """The comparison as pairs of its own prompt."""
    row, sequences = comparison.row, comparison.sequences
    return [
        EncodedComparison(
            Comparison(row.prompt, (row.responses[i], row.responses[j]), (row.ranks[i], row.ranks[j])),
            comparison.prompt, [sequences[i], sequences[j]],
        )
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]  # fmt: skip


def test_a_preference_that_holds_for_all_prompts_is_found_and_the_rules_are_on_the_same_pairs():
    comparisons = encoded(32)
    shared = SharedModel(tiny_model())
    result = cross_validate(shared, comparisons, config(num_train_epochs=10), 4)
    assert result.evaluation.accuracy.value > 0.95 and result.evaluation.accuracy.count == 96
    assert [fold.count for fold in result.folds] == [24] * 4
    assert result.by_prompt.value == pytest.approx(result.evaluation.accuracy.value)
    rules = evaluate(add_reward_adapter(shared, config()), comparisons)
    assert result.evaluation.longest_wins == rules.longest_wins
    assert result.evaluation.most_distinct_words_wins == rules.most_distinct_words_wins


def test_what_a_fold_gives_is_what_training_on_the_other_folds_gives():
    comparisons = encoded(12)
    result = cross_validate(SharedModel(tiny_model()), comparisons, config(num_train_epochs=2), 3)
    cut = Folds.cut(comparisons, comparisons, [], 3, config().seed)
    for fold, expected in enumerate(result.folds):
        torch.manual_seed(config().seed)
        critic = add_reward_adapter(SharedModel(tiny_model()), config(), sft=None)
        fit(critic, cut.train(fold), config(num_train_epochs=2))
        assert evaluate(critic, cut.heldout(fold)).accuracy == expected


def test_no_fold_trains_on_a_prompt_that_it_judges_and_each_is_judged_once(monkeypatch):
    comparisons, extra = encoded(10), encoded(4, seed=3, rename="w3 ")
    pairs = [pair for c in comparisons for pair in pairwise(c)]
    seen: list[tuple[set[str], set[str]]] = []
    fit, scored = module.fit, module.scored_pairs

    def watched_fit(critic, train, options):
        seen.append((keys(train), set()))
        return fit(critic, train, options)

    def watched_scores(critic, heldout, **options):
        seen[-1][1].update(keys(heldout))
        return scored(critic, heldout, **options)

    monkeypatch.setattr(module, "fit", watched_fit)
    monkeypatch.setattr(module, "scored_pairs", watched_scores)
    result = cross_validate(
        SharedModel(tiny_model()), comparisons, config(num_train_epochs=1), 5, measured=pairs, extra=extra
    )
    assert len(seen) == 5 and result.evaluation.accuracy.count == 30
    for trained, judged in seen:
        assert trained | judged == keys(comparisons) | keys(extra)
        assert not trained & judged and keys(extra) <= trained
    assert sorted(key for _, judged in seen for key in judged) == sorted(keys(comparisons))


def test_the_shared_model_is_left_as_it_was_and_a_fold_may_start_from_a_copy():
    shared = SharedModel(tiny_model())
    start = add_reward_adapter(shared, config(), name="start")
    fit(start, encoded(16, seed=2, rename="w4 "), config())
    before = {key: p.detach().clone() for key, p in start.named_parameters()}
    few = config(num_train_epochs=0.5, learning_rate=1e-3)
    copied = cross_validate(shared, encoded(12), few, 3, start="start")
    assert list(shared.configs) == list(shared.heads) == ["start"]
    assert all(torch.equal(p, before[key]) for key, p in start.named_parameters())
    fresh = cross_validate(SharedModel(tiny_model()), encoded(12), few, 3)
    assert copied.evaluation.accuracy.value > fresh.evaluation.accuracy.value


def test_states_below_the_first_adapted_layer_are_computed_once_and_change_no_number():
    options = config(lora_layers=[1], num_train_epochs=2)
    results = {}
    for cached in (False, True):
        torch.manual_seed(0)
        critic = add_reward_adapter(SharedModel(tiny_model()), options)
        with cache_of(critic, encoded(6)).serving() if cached else nullcontext():
            history = fit(critic, encoded(6), options)
            scores = sequence_scores(critic, encoded(6)[0].sequences, 1000)
        results[cached] = ([step["loss"] for step in history], scores)
    assert results[True][0] == pytest.approx(results[False][0], abs=1e-6)
    torch.testing.assert_close(results[True][1], results[False][1], rtol=0, atol=1e-6)


def cache_of(critic: Critic, comparisons: list[EncodedComparison]) -> TrunkCache:
    sequences = [sequence for c in comparisons for sequence in c.sequences]
    cache = TrunkCache(critic.model, sequences, MicroBatches(30))
    assert cache.depth == 1 and len(cache.hidden) == len(set(map(tuple, sequences)))
    return cache


def test_the_interval_over_prompts_is_wider_where_pairs_of_a_prompt_agree():
    def pairs(*margins: float) -> list[Pair]:
        return [Pair("a", "b", margin) for margin in margins]

    together = accuracy_over_prompts([pairs(1, 1), pairs(-1, -1), pairs(1, 1), pairs(1, 1)])
    mixed = accuracy_over_prompts([pairs(1, -1), pairs(1, -1), pairs(1, 1), pairs(1, 1)])
    assert together.value == mixed.value == 0.75 and together.count == 8
    # squares: 3 * 0.5^2 + 1.5^2 = 3, and 2 * 0.5^2 + 2 * 0.5^2 = 1; half = 1.96 sqrt(4 / 3 * squares) / 8
    assert together.low == pytest.approx(0.75 - 1.959964 * 2 / 8)
    assert mixed.low == pytest.approx(0.75 - 1.959964 * (4 / 3) ** 0.5 / 8)
    assert accuracy_over_prompts([pairs(0), pairs(1)]).value == 0.75
    with pytest.raises(UsageError, match=r"two or more; got 1"):
        accuracy_over_prompts([pairs(1, -1)])


def test_what_would_give_a_held_out_prompt_away_or_judge_nothing_is_refused():
    comparisons = encoded(6)
    with pytest.raises(UsageError, match="2 of the extra comparisons have a prompt that is held out"):
        cross_validate(SharedModel(tiny_model()), comparisons, config(), 3, extra=comparisons[:2])
    ties = [replace(c, row=replace(c.row, ranks=(1, 1, 1))) for c in comparisons[1:]]
    with pytest.raises(UsageError, match="2 of 3 folds hold no pair with different ranks; use fewer"):
        cross_validate(SharedModel(tiny_model()), [comparisons[0], *ties], config(), 3)
    with pytest.raises(UsageError, match="cannot make 9 folds of 6 different prompts"):
        cross_validate(SharedModel(tiny_model()), comparisons, config(), 9)
