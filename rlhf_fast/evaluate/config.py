"""`EvaluateConfig`: every choice of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_fast.runtime.config import InferenceConfig, option


@dataclass
class EvaluateConfig(InferenceConfig):
    """Compare a policy with a baseline on held-out prompts."""

    model_path: str | None = option(None, "The policy: a model or adapter folder.")
    baseline_path: str | None = option(
        None, "What to compare with, usually the SFT model. Default: the base of model_path's adapter."
    )
    reward_model_paths: list[str] = option(
        [],
        "Reward adapters or sequence-classification models. The first is the one that the policy was trained on; "
        "the others only judge.",
    )
    reward_funcs: list[str] = option(
        [],
        "Rewards beside the reward models, or without any: module:function, path/to/file.py:function or "
        "endpoint:ADDRESS, as for ppo. Without reward models the first is the one that the policy was trained on.",
    )
    reward_special_tokens: bool = option(
        False,
        "Rewards read responses, and the report shows them, with their special tokens but the one that ends them. "
        "Not those that read token ids.",
    )
    output_dir: str = option("evaluation", "Where evaluation.json and report.html are written.")
