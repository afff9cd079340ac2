"""PPO from human feedback on one page (Ziegler et al. 2019, Stiennon et al. 2020).

collect   sample a response to each prompt with the policy                      -> Rollout
score     log-probs of policy and reference, their KL, values, the reward's score
shape     r_t = -kl_coef * kl_t, plus the score at its slot
estimate  advantages by GAE, whitened; returns
update    clipped policy and value losses over PPO epochs and minibatches

Of several processes each collects, scores and updates with its share of a rollout. Between scoring and update each
holds the whole rollout, and shapes and estimates it alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.batches import MicroBatches, cut_by_tokens
from rlhf_fast.model.roles import Critic, Policy, ValueModel, sequence_scores
from rlhf_fast.model.trunk import keep_trunk
from rlhf_fast.rewards.source import RewardBatch, Scores, WeightedRewards, response_texts
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.rollout.sampling import Sampling, stop_ids, stop_strings
from rlhf_fast.rollout.scoring import score_rollout
from rlhf_fast.runtime.checkpoint import State
from rlhf_fast.runtime.distributed import own_share, sum_over_processes
from rlhf_fast.runtime.memory import trim_memory
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.passes import round_up
from rlhf_fast.runtime.phases import at, phase
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.ppo_metrics import check_entropy, check_first_ratio, check_scored, read_back, summarise
from rlhf_fast.train.rollout_log import RolloutLog
from rlhf_kernels import IGNORED, PPOLoss, gae_, ppo_loss, shape_rewards_, whiten_
from rlhf_kernels.checks import to_device


class MicroBatch(NamedTuple):
    """Sequences whose losses are added up, and what these sums are divided by: those over the actions, and those over
    the slots that have a value."""

    sequences: list[int]
    action_denominator: float
    value_denominator: float


@dataclass
class PPO:
    """A run's state. The roles may share one base; the algorithm does not ask."""

    config: PPORunConfig
    policy: Policy
    reference: Policy
    critic: ValueModel
    reward: WeightedRewards
    tokenizer: PreTrainedTokenizerBase
    prompts: Prompts
    iteration: int = 0
    starts_as_reference: bool = True  # the first KL must be 0 then, which is checked
    rollouts: RolloutLog = field(default_factory=lambda: RolloutLog(Path(), enabled=False))
    controller: FixedKL | AdaptiveKL = field(init=False)
    optimiser: Optimiser = field(init=False)
    micro_batches: MicroBatches = field(init=False)
    entropies: list[Tensor] = field(init=False, default_factory=list)  # the least of each micro-batch of a step
    iterations: int = field(init=False)
    sampling: Sampling = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        episodes = c.total_episodes or round_up(c.num_train_epochs * len(self.prompts))
        self.iterations = max(1, -(-episodes // c.batch_size))
        self.controller = AdaptiveKL(c.kl_coef, c.kl_target, c.kl_horizon) if c.kl_target else FixedKL(c.kl_coef)
        trained = chain(self.policy.named_parameters(), self.critic.named_parameters())
        steps = self.iterations * c.num_ppo_epochs * c.num_mini_batches
        self.optimiser = Optimiser.build(c, trained, steps, steps_per_rate=c.steps_per_rate)
        self.micro_batches = MicroBatches.of(c, clear_gradients=self.optimiser.clear)
        stop = stop_ids(self.tokenizer, c.stop_token, c.stop_token_id, model_eos=self.policy.model.eos_ids)
        strings = stop_strings(self.tokenizer, c.stop)
        self.sampling = Sampling(c.response_length, stop, c.logit_temperature, stop_strings=strings)

    @property
    def can_undo(self) -> bool:
        """Whether an update that has begun can be given up: a run keeps a copy of what is trained to go back to. Only
        of adapters it is small enough."""
        return not any(model.train_base for model in (self.policy.model, *self.critic.models))

    def step(self) -> dict[str, float]:
        """One iteration: a rollout and its update. Returns the metrics."""
        with phase("rollout"):
            rollout = self.collect()
        trim_memory()  # of the cache and the packed weights
        return self.learn(rollout)

    def learn(self, rollout: Rollout, given: Scores | None = None) -> dict[str, float]:
        """The rest of an iteration, from a rollout on: score, shape, estimate, update. `given` replaces the reward's
        scores. Returns the metrics."""
        models = (self.policy.model, *self.critic.models)  # the reference is the policy's base, or runs only once
        with keep_trunk(models, rollout.sequences(), self.micro_batches):  # layers no role adapts run once
            with phase("scoring"):
                scores = self.score(rollout, given).gather()
                rollout = rollout.gather()
                self.shape(rollout, scores.total)
                self.estimate(rollout)
            self.rollouts.record(self.iteration + 1, rollout, scores, self.tokenizer)
            with phase("update"):
                updates = self.update(rollout)
        trim_memory()  # of activations, and of the states that were kept
        metrics = summarise(rollout, scores, updates, self.controller.coef)
        metrics |= {"lr": self.optimiser.learning_rate, "skipped_steps": float(self.optimiser.skipped)}
        metrics |= self.micro_batches.metrics()
        self.iteration += 1
        self.controller.update(metrics["objective/kl"], len(rollout))
        return metrics | {"episode": float(self.iteration * self.config.batch_size)}

    def state(self) -> State:
        """What changes over a run beside the optimiser and what it trains."""
        return State(facts={"iteration": self.iteration, "kl_coef": self.controller.coef})

    def load_state(self, state: State) -> None:
        self.iteration, self.controller.coef = state.facts["iteration"], state.facts["kl_coef"]

    def collect(self) -> Rollout:
        """Responses to this process's share of the iteration's prompts. The seed of each follows from the run's and
        from its number in the run, whatever process samples it."""
        c = self.config
        rows = list(own_share(self.prompts.batch(self.iteration, c.batch_size, c.seed)))
        numbers = own_share(range(self.iteration * c.batch_size, (self.iteration + 1) * c.batch_size))
        seeds = [(c.seed << 32) + number for number in numbers]  # those of two runs never overlap
        return respond(self.policy, self.prompts, rows, seeds, self.sampling, c, max_tokens=self.micro_batches.tokens)

    def score(self, rollout: Rollout, given: Scores | None = None) -> Scores:
        """Fill what the models give. Returns the reward's scores, or those given, less the missing-EOS penalty."""
        c = self.config
        self.score_tokens(rollout)
        check_scored(
            rollout, first=self.iteration == 0 and self.starts_as_reference, exact=c.kl_estimator == "exact",
            dtype=self.policy.model.dtype,
        )  # fmt: skip
        scores = score_responses(self.reward, self.tokenizer, rollout, self.prompts) if given is None else given
        penalty = (c.missing_eos_penalty or 0.0) * self.misses_eos(rollout).float()
        return scores._replace(total=to_device(scores.total, rollout.tokens.device) - penalty)

    def score_tokens(self, rollout: Rollout) -> None:
        """Fill `logprobs`, `ref_logprobs`, `kl`, `values`, and `bootstrap` where it is read."""
        c = self.config
        score_rollout(
            rollout, self.policy, self.reference, self.critic, self.micro_batches,
            temperature=c.logit_temperature, kl_estimator=c.kl_estimator,
        )  # fmt: skip
        if c.bootstrap_truncated:  # the value of the state after the last token, which no slot reads
            assert isinstance(self.critic, Critic)  # the config refuses the others
            last = sequence_scores(self.critic, rollout.sequences(), self.micro_batches)
            rollout.bootstrap = to_device(last, rollout.tokens.device) * rollout.truncated

    def misses_eos(self, rollout: Rollout) -> Tensor:
        """(B,) bool, what the missing-EOS penalty falls on: responses cut off by the budget; where nothing ends a
        response, those without an EOS in them."""
        if self.sampling.stop_ids or self.sampling.stop_strings:
            return rollout.truncated
        eos = self.tokenizer.eos_token_id
        return to_device(torch.tensor([eos not in response for response in rollout.responses()]), rollout.tokens.device)

    def shape(self, rollout: Rollout, scores: Tensor) -> None:
        """Fill `rewards` from `kl` and the scores (B,)."""
        c = self.config
        shape_rewards_(
            rollout.rewards, rollout.kl, scores, rollout.score_index, rollout.cu_responses,
            kl_coef=self.controller.coef,
        )  # fmt: skip
        if c.whiten_rewards:
            whiten_(rollout.rewards, shift_mean=False, ddof=c.whiten_ddof)

    def estimate(self, rollout: Rollout) -> None:
        """Fill `advantages` (whitened over the action slots) and `returns` from `rewards` and `values`."""
        c = self.config
        rollout.advantages.copy_(rollout.rewards)  # which become advantages in place
        rollout.returns = gae_(
            rollout.advantages, rollout.values, rollout.cu_responses, gamma=c.gamma, lam=c.lam,
            bootstrap=rollout.bootstrap, whiten=True, mask=rollout.action_mask, ddof=c.whiten_ddof,
        )  # fmt: skip

    def update(self, rollout: Rollout) -> list[dict[str, float]]:
        """`num_ppo_epochs` passes in `num_mini_batches` optimiser steps each; returns the metrics of every step."""
        c = self.config
        old = rollout.sampled_logprobs if c.old_logprobs == "sampled" else rollout.logprobs
        assert old is not None
        shuffle = torch.Generator().manual_seed(c.seed + self.iteration)
        updates: list[dict[str, float]] = []
        for _ in range(c.num_ppo_epochs):
            for minibatch in torch.randperm(len(rollout), generator=shuffle).tensor_split(c.num_mini_batches):
                losses = self.accumulate(rollout, [b for b in minibatch.tolist() if b in rollout.own], old)
                metrics, (norm, *entropies) = read_back(losses, [self.optimiser.clip(), *self.entropies])
                check_entropy(entropies)
                if not updates and c.old_logprobs == "recomputed":
                    model = self.policy.model
                    check_first_ratio(metrics["ratio_mean"], metrics["clipfrac"], model.dtype, model.device)
                self.optimiser.advance(metrics["loss"], norm)
                updates.append(metrics | {"grad_norm": norm})
                if c.target_kl is not None and metrics["approx_kl"] > c.target_kl:
                    return updates  # with this step taken
        return updates

    def accumulate(self, rollout: Rollout, sequences: list[int], old: Tensor) -> list[PPOLoss]:
        """Forward, loss and backward of this process's `sequences` of a minibatch (perhaps none), micro-batch by
        micro-batch; returns their losses."""

        self.entropies.clear()

        def backward(micro_batch: MicroBatch, weight: float) -> PPOLoss:
            at("update forward")
            loss = self.loss(rollout, micro_batch, old)
            at("update backward")
            (loss.loss * weight).backward()
            return loss._replace(loss=loss.loss.detach())

        groups = list(self.loss_groups(rollout, sequences))  # once: it exchanges counts, and any process may cut again
        cut = partial(cut_groups, rollout.lengths, groups)
        spare = MicroBatch(list(rollout.own[:1]), 1.0, 1.0)
        return self.micro_batches.run(self.policy.model, cut, backward, spare=spare, may_stop=self.can_undo)

    def loss(self, rollout: Rollout, micro_batch: MicroBatch, old: Tensor) -> PPOLoss:
        """The clipped losses of policy and critic on a micro-batch; those of all micro-batches of a minibatch, in all
        processes, add up to its mean."""
        c = self.config
        packed, slots = rollout.select(micro_batch.sequences)
        mask = packed.labels != IGNORED
        hidden = self.policy.hidden(packed)
        scored = self.policy.read(
            hidden, packed.labels, packed.scored,
            temperature=c.logit_temperature, entropy=True, entropy_gradient=c.entropy_coef != 0,
        )  # fmt: skip
        if scored.entropy is not None and scored.entropy.numel():
            self.entropies.append(scored.entropy.detach().min())
        values = self.critic.values(replace(packed, policy_hidden=hidden))  # some critics read the policy's states
        return ppo_loss(
            scored.logprobs, old[slots], rollout.advantages[slots],
            values, rollout.values[slots], rollout.returns[slots],
            mask=mask, value_mask=torch.ones_like(mask),  # an eos+1 slot has a value and no action
            denominator=micro_batch.action_denominator, value_denominator=micro_batch.value_denominator,
            cliprange=c.cliprange, cliprange_value=c.cliprange_value, vf_coef=c.vf_coef,
            entropy=scored.entropy, entropy_coef=c.entropy_coef, dual_clip=c.dual_clip,
            log_ratio_clamp=c.log_ratio_clamp,
        )  # fmt: skip

    def loss_groups(self, rollout: Rollout, sequences: list[int]) -> Iterator[MicroBatch]:
        """This process's `sequences` of a minibatch (perhaps none), with what `loss_mean` divides their sums by: the
        tokens of the whole minibatch, or those of a group of per_device_train_batch_size times the number of groups."""
        if self.config.loss_mean == "token":
            actions, slots = sum_over_processes(*rollout.counts(sequences))
            yield MicroBatch(sequences, max(1.0, actions), max(1.0, slots))
            return
        size = self.config.per_device_train_batch_size
        groups = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        (number,) = sum_over_processes(len(groups))
        for group in groups:
            actions, slots = rollout.counts(group)
            yield MicroBatch(group, max(1.0, actions) * number, max(1.0, slots) * number)


def respond(
    policy: Policy, prompts: Prompts, rows: list[int], seeds: list[int], sampling: Sampling, config: PPORunConfig, *,
    max_tokens: int,
) -> Rollout:  # fmt: skip
    """A response to each of `rows` of `prompts`, sampled with its seed; prompts are read `max_tokens` at a time."""
    ids = [prompts.ids[row] for row in rows]
    responses = generate(
        policy, ids, sampling, seeds=seeds,
        max_batch=config.max_rollout_batch, max_tokens=max_tokens, max_kv_cache_gb=config.max_kv_cache_gb,
    )  # fmt: skip
    return Rollout.from_responses(
        ids, [r.tokens for r in responses], finished=[r.finished for r in responses], budget=config.response_length,
        score_at=config.score_at, prompt_rows=rows, seeds=seeds, logprobs=[r.logprobs for r in responses],
        device=policy.model.device,
    )  # fmt: skip


def score_responses(
    reward: WeightedRewards, tokenizer: PreTrainedTokenizerBase, rollout: Rollout, prompts: Prompts
) -> Scores:
    """What the reward gives the responses to rows of `prompts`."""
    rows = rollout.prompt_rows.tolist()
    ids, finished = rollout.responses(), rollout.finished.tolist()
    texts = response_texts(tokenizer, ids, finished, special_tokens=reward.special_tokens)
    columns = {name: [values[row] for row in rows] for name, values in prompts.columns.items()}
    conversations = [prompts.conversations[row] for row in rows]
    texts_of_prompts = [prompts.texts[row] for row in rows]
    tools = [prompts.tools[row] for row in rows]
    batch = RewardBatch(texts_of_prompts, texts, rollout.sequences(), columns, conversations, ids, finished, tools)
    return reward.score(batch)


def cut_groups(lengths: list[int], groups: list[MicroBatch], max_tokens: int) -> list[MicroBatch]:
    """`groups` in order, each cut into pieces of at most `max_tokens` tokens; `lengths` are those of all sequences."""
    return [
        group._replace(sequences=[group.sequences[i] for i in piece])
        for group in groups
        for piece in cut_by_tokens([lengths[b] for b in group.sequences], max_tokens)
    ]


@dataclass
class FixedKL:
    coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Nothing changes."""


@dataclass
class AdaptiveKL:
    """Proportional controller in log space (Ziegler et al. 2019, section 2.2)."""

    coef: float
    target: float  # nats a response
    horizon: int  # episodes

    def update(self, kl: float, episodes: int) -> None:
        """coef *= 1 + error * episodes / horizon, with error = kl / target - 1 clipped to +-0.2."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * episodes / self.horizon
