"""`PPORunConfig`: every choice of a PPO run, under the names of TRL 1.12's `PPOConfig` where that has one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rlhf_fast.rollout.rollout import ScoreAt
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

PRESETS: dict[str, dict[str, Any]] = {
    "rlhf_fast": {},
    "trl": {"score_at": "eos+1", "loss_mean": "micro"},
    "openrlhf": {"whiten_ddof": 0, "lam": 1.0, "log_ratio_clamp": 20.0},
    "verl": {"dual_clip": 3.0},
}
"""What a preset sets, where the field has its default value (given or left: the two cannot be told apart)."""
TRL: dict[str, Any] = PRESETS["trl"] | {"stop_token": "none"}
"""TRL 1.12's own values of the fields whose default is another one here."""


@dataclass
class PPORunConfig(StageConfig):
    """PPO against a reward, with a KL penalty to the SFT model."""

    stage: ClassVar[str] = "ppo"

    learning_rate: float = field(default=3e-6, metadata={"help": "Learning rate of AdamW, for policy and critic."})
    output_dir: str | None = field(default="ppo", metadata={"help": "Where the policy and its metrics are saved."})
    sft_model_path: str | None = field(
        default=None,
        metadata={"help": "The SFT model or SFT adapter folder: where the policy starts, and the reference."},
    )
    reward_model_path: str | None = field(
        default=None, metadata={"help": "A reward adapter folder, or a sequence-classification model with one output."}
    )
    preset: Literal["rlhf_fast", "trl", "openrlhf", "verl"] = field(
        default="rlhf_fast",
        metadata={"help": "Take another library's formulas, in the fields that have their default values."},
    )
    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Rewards beside the reward model: module:function or path/to/file.py:function, called as "
            "function(prompts, responses, **columns); endpoint:ADDRESS, sent the same by POST and answered with scores."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of reward_funcs, in their order. Default: 1 each."}
    )
    reward_special_tokens: bool = field(
        default=False,
        metadata={
            "help": "Rewards read responses, and rollouts.jsonl shows them, with their special tokens but the one that "
            "ends them. Not those that read token ids."
        },
    )
    reward_timeout: float | None = field(
        default=None,
        metadata={
            "help": "Seconds that a reward function or endpoint may take a batch. Default: no limit for a function, "
            "60 for an endpoint."
        },
    )
    reward_retries: int = field(
        default=2,
        metadata={"help": "Times that a reward function or endpoint that failed is asked again before the run stops."},
    )
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Responses to sample in all. Default: num_train_epochs passes over the prompts."},
    )
    response_length: int = field(default=53, metadata={"help": "Most tokens of a response."})
    stop_token: Literal["eos", "none"] = field(
        default="eos", metadata={"help": "eos: a response ends at the tokenizer's EOS. none: it runs to its budget."}
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "A token id that ends a response, instead of EOS."}
    )
    stop: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Strings that end a response, which keeps the token that completes one; beside the stop token."
        },
    )
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature, in rollout and update alike."})
    max_rollout_batch: int = field(default=32, metadata={"help": "Sequences decoded together. Memory and speed only."})
    max_kv_cache_gb: float | None = field(
        default=None,
        metadata={"help": "Most GB of keys and values; more sequences wait. Default: half of the free memory."},
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over a rollout."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimiser steps in each PPO epoch."})
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty in the reward (beta)."})
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = field(
        default="k1",
        metadata={
            "help": "KL of a token, in the penalty and the metrics: k1, the sampled log-ratio. k2, k3 (Schulman 2020) "
            "and exact (over the vocabulary) hardly hold a policy as a penalty: refused but with kl_coef=0, which only "
            "logs them, and k3 with preset=trl."
        },
    )
    kl_target: float | None = field(
        default=None, metadata={"help": "Adapt kl_coef towards this KL in nats a response (Ziegler et al. 2019)."}
    )
    kl_horizon: int = field(default=10000, metadata={"help": "Episodes over which the adaptive kl_coef reacts."})
    target_kl: float | None = field(
        default=None, metadata={"help": "End the update of a rollout once policy/approxkl passes this."}
    )
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the value around its old value."})
    critic: Literal["adapter", "policy_head", "reference_mlp"] = field(
        default="adapter",
        metadata={
            "help": "adapter: one of its own on the base, from the reward adapter where there is one. policy_head: a "
            "scalar head on the policy's states. reference_mlp: a small network on the reference's states. The last "
            "two run no forward of their own."
        },
    )
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    entropy_coef: float = field(default=0.0, metadata={"help": "Weight of an entropy bonus."})
    dual_clip: float | None = field(
        default=None, metadata={"help": "Bound of the loss for negative advantages, e.g. 3."}
    )
    log_ratio_clamp: float | None = field(
        default=None, metadata={"help": "Bound of |log ratio| before exponentiation."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of future rewards."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale shaped rewards to unit deviation, mean kept."})
    whiten_ddof: int = field(default=1, metadata={"help": "Delta degrees of freedom of whitening: 1 or 0."})
    score_at: ScoreAt = field(
        default="eos", metadata={"help": "Slot that receives the score: the last token, or one after EOS (eos+1)."}
    )
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a response that ran out of budget."}
    )
    bootstrap_truncated: bool = field(
        default=False, metadata={"help": "Let GAE continue with the critic's value beyond a truncated response."}
    )
    loss_mean: Literal["token", "micro"] = field(
        default="token",
        metadata={
            "help": "token: mean over the minibatch's tokens. micro: mean of the means over "
            "per_device_train_batch_size sequences each, as TRL's."
        },
    )
    old_logprobs: Literal["recomputed", "sampled"] = field(
        default="recomputed",
        metadata={"help": "Old log-probs: by the training forward, or as the rollout sampled them."},
    )

    save_steps: float = field(
        default=10, metadata={"help": "Iterations from one checkpoint to the next; below 1, their share of all."}
    )
    log_rollouts: bool = field(
        default=True,
        metadata={"help": "Write every response that is trained on, with its scores, to rollouts.jsonl."},
    )
    profile: bool = field(
        default=False,
        metadata={"help": "Print where the time goes by phase, beside its floor, and write profile.json and a trace."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) == _default(type(self), name):
                setattr(self, name, value)
        self._check()
        self._check_penalty()

    @property
    def logit_temperature(self) -> float:
        """What logits are divided by, in rollout, scoring and update; TRL adds 1e-7."""
        return self.temperature + (1e-7 if self.preset == "trl" else 0.0)

    @property
    def steps_per_rate(self) -> int:
        """Optimiser steps that share a learning rate; in TRL those of an iteration."""
        return self.num_ppo_epochs * self.num_mini_batches if self.preset == "trl" else 1

    def _check(self) -> None:
        at_least_one = ("response_length", "num_ppo_epochs", "num_mini_batches", "max_rollout_batch", "kl_horizon")
        for name in at_least_one:
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("temperature", "cliprange", "cliprange_value"):
            self.require(getattr(self, name) > 0, name, "above 0")
        for name in ("kl_coef", "vf_coef", "entropy_coef", "reward_retries"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(all(self.stop), "stop", "strings of one character or more")
        above_zero = ("missing_eos_penalty", "kl_target", "target_kl", "log_ratio_clamp", "total_episodes")
        for name in (*above_zero, "max_kv_cache_gb", "reward_timeout"):
            self.require(getattr(self, name) is None or getattr(self, name) > 0, name, "a number above 0, or nothing")
        self.require(self.dual_clip is None or self.dual_clip > 1, "dual_clip", "a number above 1, or nothing")
        self.require(
            not self.bootstrap_truncated or self.critic == "adapter",
            "bootstrap_truncated",
            "false unless critic=adapter",
        )
        self.require(self.cliprange < 1, "cliprange", "below 1")
        for name in ("gamma", "lam"):
            self.require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        self.require(
            self.use_peft or self.dtype != "bfloat16", "dtype",
            "float32 or auto with use_peft=false: bfloat16 weights would round small updates away",
        )  # fmt: skip
        self.require(self.whiten_ddof in (0, 1), "whiten_ddof", "0 or 1")
        self.require(
            self.num_mini_batches <= self.batch_size,
            "num_mini_batches",
            f"at most the {self.batch_size} responses of a batch",
        )

    def _check_penalty(self) -> None:
        """A slot's penalty reaches its own token through the score function only. The gradient that this gives is the
        KL's where the penalty is the sampled log-ratio (k1); that of `exact` is 0, as it is the same for every token of
        the slot, and those of k2 and k3 are near 0 close to the reference and point elsewhere farther from it."""
        if self.kl_estimator == "k1" or self.kl_coef == 0:
            return
        weak = (
            "as a penalty in the reward it hardly holds the policy at the reference: its gradient is not that of the KL"
        )
        if self.preset == "trl" and self.kl_estimator == "k3":
            notices.warning("kl_estimator=k3 is TRL's formula, but %s; use k1.", weak)
            return
        raise UsageError(
            f"kl_estimator={self.kl_estimator!r} cannot be used: {weak}. Expected k1; or k3 with preset=trl, which "
            "takes TRL's formulas as they are; or kl_coef=0, with which it is only logged."
        )


def _default(config: type[PPORunConfig], name: str) -> Any:
    return config.__dataclass_fields__[name].default


def difference_from_trl(config: PPORunConfig) -> str | None:
    """One line for a reader who knows TRL, where our defaults compute something else; None where nothing differs."""
    if config.preset not in ("rlhf_fast", "trl"):
        return None
    skipped = {"stop_token"} if config.stop_token_id is not None else set()
    names = [name for name, value in TRL.items() if getattr(config, name) != value and name not in skipped]
    if not names:
        return None
    remedy = "" if names == ["stop_token"] else " preset=trl takes TRL's formulas."
    return f"unlike TRL: {', '.join(f'{n}={getattr(config, n)} (TRL: {TRL[n]})' for n in names)}.{remedy}"
