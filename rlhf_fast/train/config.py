"""`SFTConfig` and `PPORunConfig`: every choice of supervised fine-tuning and of PPO; the latter under the names of TRL
1.12's `PPOConfig` where that has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlhf_fast.runtime.config import (
    BY_DEVICE,
    NOT_EMPTY,
    Check,
    Config,
    StageConfig,
    above,
    at_least,
    default_of,
    fill_by_device,
    option,
    zero_or_more,
)
from rlhf_fast.runtime.distributed import world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices


@dataclass
class SFTConfig(StageConfig):
    """Supervised fine-tuning on demonstrations; the loss is on responses only."""

    stage: ClassVar[str] = "sft"

    output_dir: str = option("sft", "Where the model or adapter is saved.")
    model_name_or_path: str | None = option(None, "The base model: a folder or a hub name.")
    eval_dataset_name: str | None = option(
        None, "Held-out demonstrations; their loss is in the metrics of step 0 and of the last step."
    )
    learning_rate: float = option(2e-4, "Peak learning rate of AdamW.")
    num_train_epochs: float = option(1.0, "Passes over the demonstrations; steps are rounded up.")
    per_device_train_batch_size: int = option(
        16, "Demonstrations in an optimiser step; the last of a pass has those that are left."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("lora_r", "lora_alpha", "lora_target_modules", "lora_layers"):
            unset = getattr(self, name) == default_of(type(self), name)
            self.require(self.use_peft or unset, name, "its default, as use_peft is false")


CriticKind = Literal["adapter", "policy_head", "reference_mlp"]
PRESETS: dict[str, dict[str, Any]] = {
    "rlhf_fast": {},
    "trl": {"score_at": "eos+1", "loss_mean": "micro"},
    "openrlhf": {"whiten_ddof": 0, "lam": 1.0, "log_ratio_clamp": 20.0},
    "verl": {"dual_clip": 3.0},
}
"""What a preset sets, where the field has its default value (given or left: the two cannot be told apart)."""
TRL: dict[str, Any] = PRESETS["trl"] | {"stop_token": "none"}
"""TRL 1.12's own values of the fields whose default is another one here."""


CLIP = Check(lambda value: 0 < value < 1, "above 0 and below 1")
FRACTION = Check(lambda value: 0 <= value <= 1, "between 0 and 1")


@dataclass
class PPOOptions(Config):
    """What is chosen of the algorithm, on the command line and in the trainer's `PPOConfig` alike."""

    learning_rate: float = option(3e-6, "Learning rate of AdamW, for policy and critic.", check=above(0))
    preset: Literal["rlhf_fast", "trl", "openrlhf", "verl"] = option(
        "rlhf_fast", "Take another library's formulas, in the fields that have their default values."
    )
    reward_special_tokens: bool = option(
        False,
        "Rewards read responses, and rollouts.jsonl shows them, with their special tokens but the one that ends "
        "them. Not those that read token ids.",
    )
    reward_timeout: float | None = option(
        None,
        "Seconds that a reward function or endpoint may take a batch. Default: no limit for a function, 60 for an "
        "endpoint.",
        check=above(0),
        resume="free",
    )
    reward_retries: int = option(
        2, "Times that a reward function or endpoint that failed is asked again before the run stops.",
        check=zero_or_more(), resume="free",
    )  # fmt: skip
    total_episodes: int | None = option(
        None, "Responses to sample in all. Default: num_train_epochs passes over the prompts.",
        check=above(0), resume="length",
    )  # fmt: skip
    response_length: int = option(53, "Most tokens of a response.", check=at_least(1))
    stop_token: Literal["eos", "none"] = option(
        "eos", "eos: a response ends at the tokenizer's EOS. none: it runs to its budget."
    )
    stop_token_id: int | None = option(None, "A token id that ends a response, instead of EOS.")
    stop: list[str] = option(
        [], "Strings that end a response, which keeps the token that completes one; beside the stop token.",
        check=NOT_EMPTY,
    )  # fmt: skip
    temperature: float = option(0.7, "Sampling temperature, in rollout and update alike.", check=above(0))
    max_kv_cache_gb: float | None = option(
        None, "Most GB of keys and values; more sequences wait. Default: half of the free memory.", check=above(0),
        resume="rounding",
    )  # fmt: skip
    num_ppo_epochs: int = option(4, "Passes over a rollout.", check=at_least(1))
    num_mini_batches: int = option(1, "Optimiser steps in each PPO epoch.", check=at_least(1))
    kl_coef: float = option(0.05, "Weight of the KL penalty in the reward (beta).", check=zero_or_more())
    kl_estimator: Literal["k1", "k2", "k3", "exact"] = option(
        "k1",
        "KL of a token, in the penalty and the metrics: k1, the sampled log-ratio. k2, k3 (Schulman 2020) and "
        "exact (over the vocabulary) hardly hold a policy as a penalty: refused but with kl_coef=0, which only "
        "logs them, and k3 with preset=trl.",
    )
    kl_target: float | None = option(
        None, "Adapt kl_coef towards this KL in nats a response (Ziegler et al. 2019).", check=above(0)
    )
    kl_horizon: int = option(10000, "Episodes over which the adaptive kl_coef reacts.", check=at_least(1))
    target_kl: float | None = option(
        None, "End the update of a rollout once policy/approxkl passes this.", check=above(0), read="step"
    )
    cliprange: float = option(0.2, "Clip range of the probability ratio.", check=CLIP, read="step")
    cliprange_value: float = option(0.2, "Clip range of the value around its old value.", check=above(0), read="step")
    critic: CriticKind = option(
        "adapter",
        "adapter: one of its own on the base, from the reward adapter where there is one. policy_head: a scalar "
        "head on the policy's states. reference_mlp: a small network on the reference's states. The last two run "
        "no forward of their own.",
    )
    vf_coef: float = option(0.1, "Weight of the value loss.", check=zero_or_more(), read="step")
    entropy_coef: float = option(0.0, "Weight of an entropy bonus.", check=zero_or_more(), read="step")
    dual_clip: float | None = option(
        None, "Bound of the loss for negative advantages, e.g. 3.", check=above(1), read="step"
    )
    log_ratio_clamp: float | None = option(
        None, "Bound of |log ratio| before exponentiation.", check=above(0), read="step"
    )
    gamma: float = option(1.0, "Discount of future rewards.", check=FRACTION, read="step")
    lam: float = option(0.95, "Lambda of GAE.", check=FRACTION, read="step")
    whiten_rewards: bool = option(False, "Scale shaped rewards to unit deviation, mean kept.", read="step")
    whiten_ddof: int = option(
        1, "Delta degrees of freedom of whitening: 1 or 0.", check=Check(lambda value: value in (0, 1), "0 or 1")
    )
    score_at: Literal["eos", "eos+1"] = option(
        "eos", "Slot that receives the score: the last token, or one after EOS (eos+1)."
    )
    missing_eos_penalty: float | None = option(
        None, "Subtracted from the score of a response that ran out of budget.", check=above(0), read="step"
    )
    bootstrap_truncated: bool = option(False, "Let GAE continue with the critic's value beyond a truncated response.")
    loss_mean: Literal["token", "micro"] = option(
        "token",
        "token: mean over the minibatch's tokens. micro: mean of the means over per_device_train_batch_size "
        "sequences each, as TRL's.",
    )
    old_logprobs: Literal["recomputed", "sampled"] = option(
        "recomputed", "Old log-probs: by the training forward, or as the rollout sampled them."
    )
    log_rollouts: bool = option(
        True, "Write every response that is trained on, with its scores, to rollouts.jsonl.",
        resume="free", read="train",
    )  # fmt: skip

    @property
    def logit_temperature(self) -> float:
        """What logits are divided by, in rollout, scoring and update; TRL adds 1e-7."""
        return self.temperature + (1e-7 if self.preset == "trl" else 0.0)

    @property
    def steps_per_rate(self) -> int:
        """Optimiser steps that share a learning rate; in TRL those of an iteration."""
        return self.num_ppo_epochs * self.num_mini_batches if self.preset == "trl" else 1


@dataclass
class PPORunConfig(PPOOptions, StageConfig):
    """PPO against a reward, with a KL penalty to the SFT model."""

    stage: ClassVar[str] = "ppo"

    output_dir: str = option("ppo", "Where the policy and its metrics are saved.")
    sft_model_path: str | None = option(
        None, "The SFT model or SFT adapter folder: where the policy starts, and the reference."
    )
    reward_model_path: str | None = option(
        None, "A reward adapter folder, or a sequence-classification model with one output."
    )
    reward_funcs: list[str] = option(
        [],
        "Rewards beside the reward model: module:function or path/to/file.py:function, called as "
        "function(prompts, responses, **columns); endpoint:ADDRESS, sent the same by POST and answered with "
        "scores.",
    )
    reward_weights: list[float] | None = option(None, "Weights of reward_funcs, in their order. Default: 1 each.")
    max_rollout_batch: int = option(
        0, "Sequences decoded together. Memory and speed only. 0: 32 on a CPU, 256 on a GPU.",
        check=zero_or_more("by the device"), resume="rounding",
    )  # fmt: skip
    auto: bool = option(
        False,
        "Plan first, and take the max_tokens_per_micro_batch, activation_checkpointing and max_rollout_batch that fit "
        "the memory and are fast: the result does not depend on them.",
        resume="free",
    )
    save_steps: float = option(10, "Iterations from one checkpoint to the next; below 1, their share of all.")
    profile: bool = option(
        False,
        "Print where the time goes by phase, beside its floor, and write profile.json and, without memory_profile, a "
        "trace.",
        resume="free",
    )  # fmt: skip
    memory_profile: bool = option(
        False, "Print who holds memory at the peak of each phase, and write memory.json and the page memory.html.",
        resume="free",
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        fill_by_device(self, max_rollout_batch=BY_DEVICE["responses"])
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) == default_of(type(self), name):
                setattr(self, name, value)
        self._check()
        self._check_penalty()

    def _check(self) -> None:
        self.require(not self.auto or world_size() == 1, "auto", "False in several processes, which share memory")
        self.require(
            not self.bootstrap_truncated or self.critic == "adapter",
            "bootstrap_truncated",
            "false unless critic=adapter",
        )
        self.require(
            self.use_peft or self.dtype != "bfloat16", "dtype",
            "float32 or auto with use_peft=false: bfloat16 weights would round small updates away",
        )  # fmt: skip
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


@dataclass
class PlanConfig(PPORunConfig):
    """What a PPO run would take of memory and time; exit status 0 if it fits, 3 if not."""

    stage: ClassVar[str] = "plan"

    model: str | None = option(
        None, "A model folder, a hub name, or a folder with its config.json only; instead of sft_model_path."
    )
    gpu: str | None = option(None, "Plan for a card: 16GB, 24GB, 48GB, 80GB, or another size such as 40GB.")
    ram: str | None = option(None, "Plan for the CPU with so much memory, such as 16GB. Default: what is free here.")
    from_config_only: bool = option(False, "Read neither data nor tokenizer: prompts have prompt_length tokens.")
    prompt_length: int | None = option(
        None, "Tokens of a prompt, where no data is read. Default: what max_length leaves beside the response."
    )
    table: bool = option(False, "Print how many sequences fit at a time for each card, full and LoRA, at 1k, 4k, 16k.")
    apply: str | None = option(None, "Write the config, with memory settings that fit and are fast, to this YAML file.")

    def __post_init__(self) -> None:
        planned = "cuda" if self.gpu else "cpu" if self.ram else None
        for name, of in (("max_tokens_per_micro_batch", "training tokens"), ("max_rollout_batch", "responses")):
            if planned is not None and getattr(self, name) == 0:
                setattr(self, name, BY_DEVICE[of][planned])
        super().__post_init__()
        self.sft_model_path = self.model or self.sft_model_path
        self.require(not (self.gpu and self.ram), "ram", "nothing beside gpu")


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
