"""PPO from human feedback on one page (Ziegler et al. 2019, Stiennon et al. 2020).

collect   sample a response to each prompt with the policy                      -> Rollout
score     log-probs of policy and reference, their KL, values, the reward's score
shape     r_t = -kl_coef * kl_t, plus the score at its slot
estimate  advantages by GAE, whitened; returns
update    clipped policy and value losses over PPO epochs and minibatches

Of several processes each collects, scores and updates with its share of a rollout; all shape and estimate the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_fast.model.critics import ValueModel
from rlhf_fast.model.roles import Critic, Policy, sequence_scores
from rlhf_fast.model.sharding import in_step
from rlhf_fast.model.trunk_cache import keep_trunk
from rlhf_fast.rewards.weighted import WeightedRewards
from rlhf_fast.rollout.arena import Rollout
from rlhf_fast.rollout.gather import gather_rollout
from rlhf_fast.rollout.sampling import Sampling, stop_ids
from rlhf_fast.rollout.scoring import micro_batches, score_rollout
from rlhf_fast.rollout.stop_strings import stop_strings
from rlhf_fast.runtime.budget import Budget, round_up
from rlhf_fast.runtime.distributed import gather, share, total
from rlhf_fast.runtime.interrupt import give_way
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.phases import phase
from rlhf_fast.runtime.state import State
from rlhf_fast.train import invariants, ppo_metrics
from rlhf_fast.train.controllers import AdaptiveKL, FixedKL
from rlhf_fast.train.ppo_config import PPORunConfig
from rlhf_fast.train.prompts import Prompts
from rlhf_fast.train.responses import judge, respond
from rlhf_fast.train.rollout_log import RolloutLog
from rlhf_kernels import PPOLoss, gae_, ppo_loss, shape_rewards_, whiten_


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
    starts_as_reference: bool = True  # before the first update; checked then
    rollouts: RolloutLog | None = None
    controller: FixedKL | AdaptiveKL = field(init=False)
    optimiser: Optimiser = field(init=False)
    budget: Budget = field(init=False)

    def __post_init__(self) -> None:
        c = self.config
        episodes = c.total_episodes or round_up(c.num_train_epochs * len(self.prompts))
        self.iterations = max(1, -(-episodes // c.batch_size))
        self.controller = AdaptiveKL(c.kl_coef, c.kl_target, c.kl_horizon) if c.kl_target else FixedKL(c.kl_coef)
        trained = chain(self.policy.named_parameters(), self.critic.named_parameters())
        steps = self.iterations * c.num_ppo_epochs * c.num_mini_batches
        self.optimiser = Optimiser.build(c, trained, steps, steps_per_rate=c.steps_per_rate)
        self.budget = Budget.of(c)
        stop = stop_ids(self.tokenizer, c.stop_token, c.stop_token_id, model_eos=self.policy.model.eos_ids)
        strings = stop_strings(self.tokenizer, c.stop)
        self.sampling = Sampling(c.response_length, stop, c.logit_temperature, stop_strings=strings)

    @property
    def undoes(self) -> bool:
        """Whether a run keeps a copy of what is trained, to give up an update: of adapters it is small."""
        return not any(model.train_base for model in (self.policy.model, *self.critic.models))

    def step(self) -> dict[str, float]:
        """One iteration: a rollout and its update. Returns the metrics."""
        with phase("rollout"):
            rollout = self.collect()
        return self.learn(rollout)

    def learn(self, rollout: Rollout, scores: Tensor | None = None) -> dict[str, float]:
        """The iteration after the rollout, with `scores` (B,) instead of the reward's if given. Returns the metrics."""
        self.optimiser.refuse_stuck()
        models = (self.policy.model, *self.critic.models)
        with keep_trunk(models, rollout.sequences(), max_tokens=self.budget.tokens):  # layers no role adapts run once
            with phase("scoring"):
                scores = gather(self.score(rollout, scores))
                rollout = gather_rollout(rollout)
                self.shape(rollout, scores)
                self.estimate(rollout)
            parts = {name: gather(values) for name, values in self.reward.parts.items()}
            if self.rollouts is not None:
                self.rollouts.record(self.iteration + 1, rollout, scores, parts, self.tokenizer)
            with phase("update"):
                updates = self.update(rollout)
        metrics = ppo_metrics.summarise(rollout, scores, parts, updates, self.controller.coef)
        metrics |= {"lr": self.optimiser.learning_rate, "skipped_steps": float(self.optimiser.skipped)}
        metrics |= self.budget.metrics()
        self.iteration += 1
        self.controller.update(metrics["objective/kl"], len(rollout))
        return metrics | {"episode": float(self.iteration * self.config.batch_size)}

    def state(self) -> State:
        """What changes over a run beside the optimiser and what it trains."""
        return State(facts={"iteration": self.iteration, "kl_coef": self.controller.coef})

    def load_state(self, state: State) -> None:
        self.iteration, self.controller.coef = state.facts["iteration"], state.facts["kl_coef"]

    def collect(self) -> Rollout:
        """This process's share of the iteration's prompts, each with a response that its number in the run seeds."""
        c = self.config
        rows = list(share(self.prompts.batch(self.iteration, c.batch_size, c.seed)))
        numbers = share(range(self.iteration * c.batch_size, (self.iteration + 1) * c.batch_size))
        seeds = [(c.seed << 32) + number for number in numbers]
        return respond(self.policy, self.prompts, rows, seeds, self.sampling, c, max_tokens=self.budget.tokens)

    def score(self, rollout: Rollout, scores: Tensor | None = None) -> Tensor:
        """Fill `logprobs`, `ref_logprobs`, `kl`, `values`, and `bootstrap` where it is read; return the scores (B,)
        f32, missing-EOS penalty included.

        `scores` are the reward's, or those given instead.
        """
        c = self.config
        self.budget.run(partial(self.score_tokens, rollout), undo=self.optimiser.clear)
        invariants.check_scored(
            rollout, first=self.iteration == 0 and self.starts_as_reference, exact=c.kl_estimator == "exact",
            dtype=self.policy.model.dtype,
        )  # fmt: skip
        if scores is None:
            scores = judge(self.reward, self.tokenizer, rollout, self.prompts)
        return scores.to(rollout.tokens.device) - (c.missing_eos_penalty or 0.0) * self.unended(rollout).float()

    def unended(self, rollout: Rollout) -> Tensor:
        """(B,) bool: responses cut off by the budget; where nothing ends a response, those without an EOS in them."""
        if self.sampling.stop_ids or self.sampling.stop_strings:
            return rollout.truncated
        eos = self.tokenizer.eos_token_id
        return torch.tensor([eos not in response for response in rollout.responses()], device=rollout.tokens.device)

    def score_tokens(self, rollout: Rollout) -> None:
        """Fill what the models give: all but the reward's scores."""
        c = self.config
        score_rollout(
            rollout, self.policy, self.reference, self.critic,
            temperature=c.logit_temperature, kl_estimator=c.kl_estimator, max_tokens=self.budget.tokens,
        )  # fmt: skip
        if c.bootstrap_truncated:  # the value of the state after the last token, which no slot reads
            assert isinstance(self.critic, Critic)  # the config refuses the others
            after = sequence_scores(self.critic, rollout.sequences(), self.budget.tokens)
            rollout.bootstrap = after.to(rollout.tokens.device) * rollout.truncated

    def shape(self, rollout: Rollout, scores: Tensor) -> None:
        """Fill `rewards`."""
        rewards = rollout.columns["rewards"] = torch.zeros_like(rollout.columns["kl"])
        shape_rewards_(
            rewards,
            rollout.columns["kl"],
            scores,
            rollout.score_index,
            rollout.cu_responses,
            kl_coef=self.controller.coef,
        )
        if self.config.whiten_rewards:
            whiten_(rewards, shift_mean=False, ddof=self.config.whiten_ddof)

    def estimate(self, rollout: Rollout) -> None:
        """Fill `advantages` (whitened over the action slots) and `returns`."""
        c, columns = self.config, rollout.columns
        columns["advantages"] = columns["rewards"].clone()
        columns["returns"] = gae_(
            columns["advantages"],
            columns["values"],
            rollout.cu_responses,
            gamma=c.gamma,
            lam=c.lam,
            bootstrap=rollout.bootstrap,
        )
        whiten_(columns["advantages"], mask=rollout.action_mask, ddof=c.whiten_ddof)

    def update(self, rollout: Rollout) -> list[dict[str, float]]:
        """`num_ppo_epochs` passes in `num_mini_batches` optimiser steps each; returns the metrics of every step."""
        c = self.config
        old = rollout.sampled_logprobs if c.old_logprobs == "sampled" else rollout.columns["logprobs"]
        assert old is not None
        own = set(share(range(len(rollout))))
        shuffle = torch.Generator().manual_seed(c.seed + self.iteration)
        steps: list[dict[str, float]] = []
        for _ in range(c.num_ppo_epochs):
            order = torch.randperm(len(rollout), generator=shuffle)
            for minibatch in order.tensor_split(c.num_mini_batches):
                losses = self.accumulate(rollout, [b for b in minibatch.tolist() if b in own], old)
                step = ppo_metrics.add_up(losses)
                if not steps and c.old_logprobs == "recomputed":
                    invariants.check_first_ratio(step["ratio_mean"], step["clipfrac"], self.policy.model.dtype)
                steps.append(step | {"grad_norm": self.optimiser.step(step["loss"])})
                if c.target_kl is not None and step["approx_kl"] > c.target_kl:
                    return steps
        return steps

    def accumulate(self, rollout: Rollout, sequences: list[int], old: Tensor) -> list[PPOLoss]:
        """Backward of this process's `sequences` of a minibatch (perhaps none), micro-batch by micro-batch; the losses
        of all processes add up to the minibatch's."""
        parts = self._parts(rollout, sequences)

        def work() -> list[PPOLoss]:
            shared = in_step(self.policy.model, parts, ([], 1.0, 1.0))
            return [loss for part, _ in shared for loss in self._accumulate(rollout, old, *part)]

        return self.budget.run(work, undo=self.optimiser.clear)

    def _parts(self, rollout: Rollout, sequences: list[int]) -> list[tuple[list[int], float, float]]:
        """Sequences whose means are added up, with what their sums over actions and over slots are divided by."""
        if self.config.loss_mean == "token":
            actions, slots = total(*rollout.counts(sequences))
            return [(sequences, actions, slots)]
        size = self.config.per_device_train_batch_size
        groups = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        (number,) = total(len(groups))
        counts = [rollout.counts(group) for group in groups]
        return [(g, max(1, n) * number, max(1, m) * number) for g, (n, m) in zip(groups, counts, strict=True)]

    def _accumulate(
        self, rollout: Rollout, old: Tensor, sequences: list[int], actions: float, slots: float
    ) -> list[PPOLoss]:
        """Backward of sums over `sequences`, divided by the numbers of actions and slots of all that they belong to."""
        c, columns = self.config, rollout.columns
        losses = []
        for packed, index, counts in micro_batches(rollout, sequences, self.budget.tokens, self.policy.model):
            mask = packed.labels != -100
            hidden = self.policy.hidden(packed)
            scored = self.policy.read(
                hidden, packed.labels,
                temperature=c.logit_temperature, entropy=True, entropy_gradient=c.entropy_coef != 0,
            )  # fmt: skip
            invariants.check_entropy(scored.entropy)
            values = self.critic.values(replace(packed, policy_hidden=hidden))
            loss = ppo_loss(
                scored.logprobs, old[index], columns["advantages"][index],
                values, columns["values"][index], columns["returns"][index],
                mask=mask, value_mask=torch.ones_like(mask), denominator=max(1.0, actions), value_denominator=slots,
                cliprange=c.cliprange, cliprange_value=c.cliprange_value, vf_coef=c.vf_coef, entropy=scored.entropy,
                entropy_coef=c.entropy_coef, dual_clip=c.dual_clip, log_ratio_clamp=c.log_ratio_clamp,
            )  # fmt: skip
            (loss.loss * counts).backward()
            if self.undoes:
                give_way()
            if counts:
                losses.append(loss._replace(loss=loss.loss.detach()))
        return losses
