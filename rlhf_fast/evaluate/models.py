"""The models that an evaluation compares, each base opened once, whatever number of adapters stand on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.model.adapter_files import ADAPTER_CONFIG, load_adapter, refuse_headless
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.load import load_shared, load_tokenizer, refuse_missing, resolve_source
from rlhf_fast.model.roles import Policy, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.classifier import AdapterReward, ClassifierReward
from rlhf_fast.rewards.source import RewardSource
from rlhf_fast.runtime.errors import UsageError


@dataclass
class Models:
    policy: Policy
    baseline: Policy
    names: tuple[str, str]  # baseline, policy
    rewards: list[RewardSource]  # reward models only
    tokenizer: PreTrainedTokenizerBase


def open_models(config: EvaluateConfig, dtype: torch.dtype, device: torch.device) -> Models:
    """Open both policies and the rewards. Raises `UsageError` where they do not fit each other."""
    assert config.model_path is not None
    baseline_path = config.baseline_path or _base_of(config.model_path)
    for path in config.reward_model_paths:  # before anything large is opened
        refuse_missing(resolve_source(path).base)
    tokenizer = load_tokenizer(config.model_path, config.chat_template_path)
    other = load_tokenizer(baseline_path, config.chat_template_path)
    if tokenizer.get_vocab() != other.get_vocab():
        raise UsageError(
            f"{config.model_path!r} and {baseline_path!r} have different vocabularies; expected one tokenizer, as "
            "their KL is over tokens. Compare models of one family."
        )
    bases = _Bases(dtype, device)
    policy, baseline = bases.policy(config.model_path, "policy"), bases.policy(baseline_path, "baseline")
    names = short_names([baseline_path, config.model_path])
    paths = config.reward_model_paths
    rewards = [
        bases.reward(path, name, config.max_tokens_per_micro_batch)
        for path, name in zip(paths, short_names(paths), strict=True)
    ]
    return Models(policy, baseline, (names[0], names[1]), rewards, tokenizer)


@dataclass
class _Bases:
    """The bases opened so far, by path."""

    dtype: torch.dtype
    device: torch.device
    opened: dict[str, SharedModel] = field(default_factory=dict)

    def policy(self, path: str, adapter: str) -> Policy:
        source = resolve_source(path)
        key = _key(source.base)
        if key not in self.opened:
            self.opened[key], _ = load_shared(source.base, dtype=self.dtype, device=self.device)
        if source.adapter is None:
            return Policy(self.opened[key], None)
        load_adapter(self.opened[key], source.adapter, adapter)
        return Policy(self.opened[key], adapter)

    def reward(self, path: str, name: str, max_tokens: int) -> RewardSource:
        if not is_adapter(path):
            return ClassifierReward.load(name, path, dtype=self.dtype, device=self.device)
        base = resolve_source(path).base
        if _key(base) not in self.opened:
            raise UsageError(
                f"the reward adapter {path!r} belongs to {base!r}, which is the base of neither policy "
                f"({', '.join(self.opened)}); it reads token ids. Give a reward model of the same base."
            )
        shared, adapter = self.opened[_key(base)], f"reward {name}"
        load_adapter(shared, path, adapter)
        refuse_headless(shared, adapter, path)
        return AdapterReward(name, adapter_critic(shared, adapter), MicroBatches(max_tokens))


def is_adapter(path: str) -> bool:
    return (Path(path) / ADAPTER_CONFIG).is_file()


def _base_of(model_path: str) -> str:
    source = resolve_source(model_path)
    if source.adapter is None:
        raise UsageError(
            f"{model_path!r} is a whole model, so its baseline cannot be told; set baseline_path, for example to the "
            "SFT model."
        )
    return source.base


def _key(base: str) -> str:
    return str(Path(base).resolve()) if Path(base).exists() else base


def short_names(paths: list[str]) -> list[str]:
    """Folder names where those differ, else the paths as given."""
    names = [Path(path).name or path for path in paths]
    return names if len(set(names)) == len(names) else paths
