"""Fitting a reward model to tokenised comparisons, scoring others with it, and putting its scores on a known scale; no
files involved."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from rlhf_fast.data.schema import prompt_key
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.lora_choice import add_trained
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Critic, Policy, adapter_critic, sequence_scores
from rlhf_fast.model.shared import ScalarHead, SharedModel
from rlhf_fast.preferences.comparisons import EncodedComparison
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.losses import Rankings, plackett_luce_loss
from rlhf_fast.preferences.metrics import (
    Evaluation,
    Pair,
    measure,
    pair_accuracy,
    strict_pairs,
)
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.distributed import gather, own_share, sum_over_processes
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.passes import Passes


def add_reward_adapter(
    shared: SharedModel, config: RewardConfig, *, sft: str | None = None, name: str = "reward"
) -> Critic:
    """Add adapter `name`; `sft` names the adapter that it starts as a copy of.

    Its head scores everything 0, unless the copied adapter is a reward model itself: training goes on from its head.

    The copy has the rank, scale and target layers of `sft`, so differing lora_r, lora_alpha or lora_target_modules
    raise `UsageError`; with lora_layers, only the copy's parameters on those decoder layers are trained.
    """
    add_trained(shared, config, name, copy_of=sft, head=True)
    if name not in shared.heads:
        shared.add_head(name)
    return adapter_critic(shared, name)


@dataclass
class RewardTraining:
    """A run's state: the reward model being trained and the comparisons."""

    config: RewardConfig
    critic: Critic
    comparisons: Sequence[EncodedComparison]

    def __post_init__(self) -> None:
        c = self.config
        if not self.comparisons:
            raise UsageError("there are no comparisons to train on; expected at least one.")
        prompts: dict[str, list[int]] = {}
        for index, comparison in enumerate(self.comparisons):
            prompts.setdefault(prompt_key(comparison.row.prompt), []).append(index)
        self.passes = Passes(len(self.comparisons), c.batch_size, c.seed, groups=list(prompts.values()))
        self.steps = self.passes.steps(c.num_train_epochs)
        self.optimiser = Optimiser.build(c, self.critic.named_parameters(), self.steps)
        self.micro_batches = MicroBatches.of(c, clear_gradients=self.optimiser.clear)

    def batch(self, step: int) -> list[EncodedComparison]:
        """Passes over all comparisons, each in an order of its own in which those of one prompt follow one another: a
        response that stands in several pairs is then computed once for them, and meets them in one step (Ouyang et al.
        2022, section 3.5)."""
        return [self.comparisons[row] for row in self.passes.step(step)]

    def step(self, index: int) -> dict[str, float]:
        """One optimiser step on batch `index`: its loss, pair accuracy, mean margin, gradient norm, learning rate."""
        self.optimiser.refuse_stuck()
        part, pairs = self.accumulate(self.batch(index))
        right = pair_accuracy(pairs).value * len(pairs) if pairs else 0.0
        loss, count, right, margins = sum_over_processes(part, len(pairs), right, sum(pair.margin for pair in pairs))
        metrics = {"loss": loss}
        if count:
            metrics |= {"accuracy": right / count, "margin": margins / count}
        metrics |= {"grad_norm": self.optimiser.step(loss), "lr": self.optimiser.learning_rate}
        return metrics | self.micro_batches.metrics()

    def accumulate(self, batch: Sequence[EncodedComparison]) -> tuple[float, list[Pair]]:
        """Add the gradient of the batch's mean loss; returns the loss and the strict pairs with their margins.

        Of several processes each takes its share of the batch; their gradients, losses and pairs make up the batch's.

        A micro-batch holds whole comparisons of at most max_tokens_per_micro_batch tokens (one that has more goes
        alone), a sequence that comes again counted and computed once. The result does not depend on the cut.
        """
        own = own_share(batch)

        def backward(comparisons: list[EncodedComparison], weight: float) -> tuple[float, list[Pair]]:
            loss, pairs = self.loss(comparisons, denominator=len(batch))
            (loss * weight).backward()
            return float(loss.detach()), pairs

        parts = self.micro_batches.run(
            self.critic.model, partial(cut_comparisons, own), backward, spare=list(batch[:1])
        )
        return sum(loss for loss, _ in parts), [pair for _, pairs in parts for pair in pairs]

    def loss(self, comparisons: list[EncodedComparison], *, denominator: int) -> tuple[Tensor, list[Pair]]:
        """The summed ranking loss of the comparisons over `denominator`, and their strict pairs with their margins."""
        rankings = Rankings()
        for c in comparisons:
            rankings.add(c.row.ranks, c.row.probability)
        sequences = [tuple(sequence) for c in comparisons for sequence in c.sequences]
        place = {sequence: i for i, sequence in enumerate(dict.fromkeys(sequences))}
        packed = Packed.from_sequences([list(sequence) for sequence in place], device=self.critic.model.device)
        packed = packed.with_trunk(self.critic.model, list(place))
        scores = self.critic.values(packed).cpu()  # of each different one: the loss is a few numbers, cheapest there
        scores = scores[[place[sequence] for sequence in sequences]]  # (M,)
        loss = plackett_luce_loss(
            scores, rankings, centering_coefficient=self.config.center_rewards_coefficient, denominator=denominator
        )
        return loss, pairs_of(comparisons, scores.tolist())


def cut_comparisons(batch: Sequence[EncodedComparison], max_tokens: int) -> list[list[EncodedComparison]]:
    """The batch in its order, in parts whose different sequences have at most `max_tokens` tokens together."""
    parts: list[list[EncodedComparison]] = []
    inside: set[tuple[int, ...]] = set()
    for c in batch:
        joined = inside | set(map(tuple, c.sequences))
        if not parts or sum(map(len, joined)) > max_tokens:
            parts.append([])
            joined = set(map(tuple, c.sequences))
        parts[-1].append(c)
        inside = joined
    return parts


def fit(critic: Critic, comparisons: Sequence[EncodedComparison], config: RewardConfig) -> list[dict[str, float]]:
    """Train the parameters of `critic` in place; returns the metrics of each step."""
    training = RewardTraining(config, critic, comparisons)
    history = [training.step(step) for step in range(training.steps)]
    training.optimiser.refuse_stuck()
    return history


def evaluate(critic: Critic, comparisons: Sequence[EncodedComparison], *, max_tokens: int = 2048) -> Evaluation:
    """Measure `critic` on comparisons, in forwards of at most `max_tokens` tokens.

    Calibration means something before `normalise` only: it changes the scale. Raises `UsageError` where all tie.
    """
    pairs = [pair for found in scored_pairs(critic, comparisons, max_tokens=max_tokens) for pair in found]
    if not pairs:
        raise UsageError(f"none of the {len(comparisons)} comparisons to evaluate on has different ranks; give others.")
    return measure(pairs)


def scored_pairs(
    critic: Critic, comparisons: Sequence[EncodedComparison], *, max_tokens: int = 2048
) -> list[list[Pair]]:
    """The strict pairs of each comparison with the margins of `critic`. A sequence that comes again is scored once."""
    different = list(dict.fromkeys(tuple(sequence) for c in comparisons for sequence in c.sequences))
    scores = gather(sequence_scores(critic, [list(sequence) for sequence in own_share(different)], max_tokens)).tolist()
    score_of = dict(zip(different, scores, strict=True))
    return [strict_pairs(c.row, [score_of[tuple(sequence)] for sequence in c.sequences]) for c in comparisons]


def pairs_of(comparisons: Sequence[EncodedComparison], scores: Sequence[float]) -> list[Pair]:
    """The strict pairs of all comparisons; scores are flat, in the order of their sequences."""
    pairs, start = [], 0
    for c in comparisons:
        end = start + len(c.sequences)
        pairs += strict_pairs(c.row, scores[start:end])
        start = end
    return pairs


SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class Normalisation:
    """A saved score is (s - mean) / std, s being the score that was trained; over `samples` responses."""

    mean: float
    std: float
    samples: int


def choose_prompts(
    comparisons: Sequence[EncodedComparison], config: RewardConfig, context: int | None
) -> list[list[int]]:
    """`normalise_samples` prompts that leave room for a response, in an order of the seed's, again from the first if
    there are too few. Raises `UsageError` if none leaves room."""
    limit = min(config.max_length, context or config.max_length) - config.response_length
    prompts = sorted({tuple(c.prompt) for c in comparisons if len(c.prompt) <= limit})
    if not prompts:
        raise UsageError(
            f"no prompt has {max(limit, 0)} tokens or fewer, so none leaves room for response_length="
            f"{config.response_length} within max_length={config.max_length} and the model's context ({context}). "
            "Lower response_length, or set normalise=False."
        )
    random.Random(config.seed).shuffle(prompts)
    return [list(prompts[i % len(prompts)]) for i in range(config.normalise_samples)]


def normalise(
    critic: Critic, policy: Policy, prompts: list[list[int]], stop: tuple[int, ...], config: RewardConfig
) -> Normalisation:
    """Sample a response of `policy` to each prompt, and change the head of `critic` in place so that their scores have
    mean 0 and standard deviation 1 (Ouyang et al. 2022, Huang et al. 2024). Raises `UsageError` if all score the same.
    """
    sampling = Sampling(config.response_length, stop, temperature=config.temperature)
    own, seeds = own_share(prompts), [config.seed * 1_000_003 + i for i in own_share(range(len(prompts)))]
    budget = config.max_tokens_per_micro_batch
    responses = generate(policy, list(own), sampling, seeds=seeds, max_tokens=budget)
    sequences = [prompt + response.tokens for prompt, response in zip(own, responses, strict=True)]
    scores = gather(sequence_scores(critic, sequences, budget)).double()
    mean, std = float(scores.mean()), float(scores.std())
    if not std >= SMALLEST_STD:
        raise UsageError(
            f"the reward model gives {len(prompts)} sampled responses scores with standard deviation {std:.3g}, so it "
            "tells none apart; expected more. Train longer, raise temperature, or set normalise=False."
        )
    assert isinstance(critic.head, ScalarHead)
    critic.head.normalise_(mean, std)
    return Normalisation(mean, std, len(prompts))
