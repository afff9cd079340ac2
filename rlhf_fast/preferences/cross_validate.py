"""Cross-validation over prompts: each pair is judged by a reward model that was trained on none of its prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_fast.data.schema import folds_by_prompt, prompt_key
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.roles import Critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.trunk import TrunkCache
from rlhf_fast.preferences.comparisons import EncodedComparison
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.fit import add_reward_adapter, fit, scored_pairs
from rlhf_fast.preferences.metrics import Evaluation, Pair, accuracy, measure, pair_accuracy
from rlhf_fast.runtime.device import seed_everything
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.statistics import Z95, Interval

ADAPTER = "fold"


@dataclass(frozen=True)
class CrossValidation:
    """evaluation: of all pairs together, each with the margin of the fold that did not train on its prompt.

    by_prompt: the same accuracy with an interval that takes prompts, not pairs, as independent. folds: the accuracy of
    each fold's reward model on its own pairs.
    """

    evaluation: Evaluation
    by_prompt: Interval
    folds: list[Interval]


@dataclass(frozen=True)
class Folds:
    """What is cut into folds: `comparisons` to train on and `measured` to judge; `extra` is trained on in each fold."""

    comparisons: Sequence[EncodedComparison]
    measured: Sequence[EncodedComparison]
    extra: Sequence[EncodedComparison]
    number_of: dict[str, int]

    @classmethod
    def cut(
        cls, comparisons: Sequence[EncodedComparison], measured: Sequence[EncodedComparison],
        extra: Sequence[EncodedComparison], folds: int, seed: int,
    ) -> Folds:  # fmt: skip
        """Folds whose numbers of prompts differ by one at most. Raises `UsageError` where `extra` would give a held-out
        prompt away, or a fold has no pair to judge."""
        parts = folds_by_prompt([c.row for c in (*comparisons, *measured)], folds, seed)
        number_of = {prompt_key(row.prompt): number for number, part in enumerate(parts) for row in part}
        known = sum(prompt_key(c.row.prompt) in number_of for c in extra)
        if known:
            raise UsageError(
                f"{known} of the extra comparisons have a prompt that is held out in some fold; expected none. "
                "Leave them out, or make them part of the comparisons that are split."
            )
        judged = {number_of[prompt_key(c.row.prompt)] for c in measured if len(set(c.row.ranks)) > 1}
        if len(judged) < folds:
            raise UsageError(f"{folds - len(judged)} of {folds} folds hold no pair with different ranks; use fewer.")
        return cls(comparisons, measured, extra, number_of)

    def train(self, fold: int) -> list[EncodedComparison]:
        return [*(c for c in self.comparisons if self._fold(c) != fold), *self.extra]

    def heldout(self, fold: int) -> list[EncodedComparison]:
        return [c for c in self.measured if self._fold(c) == fold]

    def sequences(self) -> list[list[int]]:
        return [sequence for c in (*self.comparisons, *self.measured, *self.extra) for sequence in c.sequences]

    def _fold(self, comparison: EncodedComparison) -> int:
        return self.number_of[prompt_key(comparison.row.prompt)]


def cross_validate(
    shared: SharedModel,
    comparisons: Sequence[EncodedComparison],
    config: RewardConfig,
    folds: int,
    *,
    measured: Sequence[EncodedComparison] | None = None,
    extra: Sequence[EncodedComparison] = (),
    start: str | None = None,
) -> CrossValidation:
    """Train and judge `folds` reward models, each a fresh adapter on `shared` (or a copy of adapter `start`).

    Fold k trains on the comparisons of the other folds' prompts and on `extra`, and judges the pairs of its own
    prompts in `measured` (default: `comparisons`). The folds are those of `config.seed`; every fold starts from the
    same random state. `shared` is left as it was. Layers below the lowest adapted one run once for all folds and
    passes, which keeps their states of all tokens in memory. Raises `UsageError`.
    """
    cut = Folds.cut(comparisons, comparisons if measured is None else measured, extra, folds, config.seed)
    by_prompt: dict[str, list[Pair]] = {}
    results: list[Interval] = []
    cache: TrunkCache | None = None
    for fold in range(folds):
        seed_everything(config.seed)
        critic = add_reward_adapter(shared, config, sft=start, name=ADAPTER)
        try:
            cache = cache or TrunkCache(shared, cut.sequences(), MicroBatches(config.max_tokens_per_micro_batch))
            with cache.serving():
                judged = _judge(critic, cut, fold, config)
        finally:
            shared.remove_adapter(ADAPTER)
        results.append(pair_accuracy([pair for _, pairs in judged for pair in pairs]))
        for key, pairs in judged:
            by_prompt.setdefault(key, []).extend(pairs)
    groups = [pairs for pairs in by_prompt.values() if pairs]
    return CrossValidation(
        measure([pair for pairs in groups for pair in pairs]), accuracy_over_prompts(groups), results
    )


def accuracy_over_prompts(groups: Sequence[Sequence[Pair]]) -> Interval:
    """The share of pairs ordered right, with a 95 % interval for groups[g], the pairs of prompt g, drawn as a whole.

    The variance is that of a ratio of sums over clusters, G / (G - 1) sum_g (sum_i (x_gi - p))^2 / n^2 (Cochran 1977).
    A margin of 0 counts half. Raises `UsageError` for fewer than two prompts.
    """
    if len(groups) < 2:
        raise UsageError(f"an interval over prompts needs two or more; got {len(groups)}.")
    correct = [accuracy([pair.margin for pair in pairs]).value * len(pairs) for pairs in groups]
    count = sum(map(len, groups))
    share = sum(correct) / count
    squares = sum((right - share * len(pairs)) ** 2 for right, pairs in zip(correct, groups, strict=True))
    half = Z95 * math.sqrt(len(groups) / (len(groups) - 1) * squares) / count
    return Interval(share, max(0.0, share - half), min(1.0, share + half), count)


def _judge(critic: Critic, cut: Folds, fold: int, config: RewardConfig) -> list[tuple[str, list[Pair]]]:
    """Train `critic` for `fold`; the pairs of each comparison that it judges, beside the comparison's prompt."""
    fit(critic, cut.train(fold), config)
    heldout = cut.heldout(fold)
    scored = scored_pairs(critic, heldout, max_tokens=config.max_tokens_per_micro_batch)
    return [(prompt_key(c.row.prompt), pairs) for c, pairs in zip(heldout, scored, strict=True)]
