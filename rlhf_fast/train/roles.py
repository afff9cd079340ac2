"""PPO's roles: how they start from the stages before, on one shared base wherever that is possible.

`build_roles` opens the folders that a config names; models that a script hands over come from
`rlhf_fast.trainer.roles`. Either way `assign_roles` chooses the critic and puts the roles together.

stage before        policy                      reference               critic (critic=adapter)
LoRA SFT            copy of the SFT adapter     frozen SFT adapter      copy of the reward adapter and head, else fresh
full SFT            fresh adapter               no adapter              the same
full fine-tuning    full copy, trained          frozen shared base      adapters on the shared base
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from rlhf_fast.model.adapter_files import ADAPTER_CONFIG, load_adapter, refuse_headless
from rlhf_fast.model.load import Source, load_shared, refuse_missing, resolve_source
from rlhf_fast.model.lora_choice import add_trained, check_shape, train_only
from rlhf_fast.model.roles import Critic, Policy, PolicyHeadCritic, ReferenceCritic, ValueModel, adapter_critic
from rlhf_fast.model.shared import ScalarHead, SharedModel
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.train.config import CriticKind, PPORunConfig


@dataclass
class Roles:
    """reward is None where the reward does not live on the shared base. base: where the policy's base came from.
    starts_as_reference: before the first update policy and reference are the same network."""

    policy: Policy
    reference: Policy
    critic: ValueModel
    base: str
    reward: Critic | None = None
    starts_as_reference: bool = True


def assign_roles(
    base: str, policy: Policy, reference: Policy, critic: ValueModel | CriticKind, *,
    add_critic: Callable[[SharedModel], None], recompute: bool, reward: Critic | None = None,
    starts_as_reference: bool = True,
) -> Roles:  # fmt: skip
    """The roles with the critic given, or one of that kind on the frozen base of the policy.

    add_critic: adds adapter "critic" with its head to that base, for "adapter". recompute: what is trained computes its
    activations again in backward.
    """
    home = reference.model if policy.adapter is None else policy.model
    if critic == "policy_head":
        critic = PolicyHeadCritic(ScalarHead(home.hidden_size, home.device))
    elif critic == "reference_mlp":
        critic = ReferenceCritic(home.hidden_size, home.device)
    elif critic == "adapter":
        add_critic(home)
        critic = adapter_critic(home, "critic")
    assert not isinstance(critic, str)
    if recompute:
        for model in {id(m): m for m in (policy.model, *critic.models)}.values():
            model.checkpoint_activations()
    return Roles(policy, reference, critic, base, reward, starts_as_reference)


def build_roles(config: PPORunConfig) -> Roles:
    """Open the SFT model and, if it is an adapter of the same base, the reward model; add what trains.

    What can be told from the folders alone raises `UsageError` before a model is opened.
    """
    if not config.sft_model_path:
        raise UsageError("PPO needs sft_model_path: the SFT model or adapter folder that the policy starts from.")
    source = resolve_source(config.sft_model_path)
    _check_folders(config, source)
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device, train_base=not config.use_peft)
    shared, sft = load_shared(config.sft_model_path, dtype=dtype, device=device, shard=config.shard_base)
    if sft in shared.heads:
        raise UsageError(
            f"sft_model_path={config.sft_model_path!r} is a reward adapter (it has a scalar head); give the SFT model."
        )
    return roles_on(shared, sft, config, base=source.base, reward=_reward(shared, config))


def roles_on(
    shared: SharedModel, sft: str | None, config: PPORunConfig, *, base: str, reward: Critic | None,
    copy_base: Callable[[PreTrainedModel], PreTrainedModel] = copy.deepcopy,
) -> Roles:  # fmt: skip
    """The roles on an opened base, with the SFT adapter `sft` where there is one: what trains is added here.

    copy_base: what makes the policy's own base where all weights are trained.
    """
    policy = _adapted(shared, sft, config) if config.use_peft else _whole(copy_base(shared.base))
    return assign_roles(
        base, policy, Policy(shared, sft), config.critic,
        add_critic=partial(_add_critic, config=config, copy_reward=reward is not None),
        recompute=bool(config.activation_checkpointing), reward=reward,
    )  # fmt: skip


def _whole(base: PreTrainedModel) -> Policy:
    """A policy all of whose weights are trained."""
    return Policy(SharedModel(base, train_base=True), None)


def _adapted(shared: SharedModel, sft: str | None, config: PPORunConfig) -> Policy:
    add_trained(shared, config, "policy", copy_of=sft)
    return Policy(shared, "policy")


def _add_critic(shared: SharedModel, *, config: PPORunConfig, copy_reward: bool) -> None:
    """The LoRA choices shape a fresh adapter; beside a policy's own they need not fit a copied one."""
    if not copy_reward:
        add_trained(shared, config, "critic", copy_of=None, head=True)
        return
    if not config.use_peft:
        check_shape(shared, config, "reward")
    shared.copy_adapter("reward", "critic")
    train_only(shared, "critic", config.lora_layers)


def _reward(shared: SharedModel, config: PPORunConfig) -> Critic | None:
    path = config.reward_model_path
    if path is None or not is_adapter(path):
        return None
    load_adapter(shared, path, "reward")
    refuse_headless(shared, "reward", path)
    return adapter_critic(shared, "reward")


def _check_folders(config: PPORunConfig, sft: Source) -> None:
    if not config.use_peft and sft.adapter is not None:
        raise UsageError(
            "use_peft=false trains all weights of a full SFT model, and sft_model_path is an adapter folder. Train "
            "SFT with use_peft=false too, or leave use_peft at true."
        )
    path = config.reward_model_path
    if path is None:
        return
    own = resolve_source(path).base
    refuse_missing(own)
    if is_adapter(path) and Path(own).resolve() != Path(sft.base).resolve() and own != sft.base:
        raise UsageError(
            f"the reward adapter {path!r} belongs to {own!r} and the SFT model to {sft.base!r}; expected one base "
            "for both. Train the reward model on the same base."
        )


def is_adapter(path: str) -> bool:
    return (Path(path) / ADAPTER_CONFIG).is_file()
