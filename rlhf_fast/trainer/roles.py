"""Policy, reference, critic and reward from what a script hands over.

given                       policy                      reference                        critic without a value model
a model and a peft_config   fresh adapter               the base without it              adapter on the same base
a PeftModel                 its adapter                 the base, or ref_adapter_name    adapter on the same base
a model                     the model itself, float32   a frozen copy of it              adapter on the reference

A `ref_model` takes the reference's place, unless its weights are those that the base gives anyway. A `value_model` is a
critic of its own, trained whole. Of each, the parameters train that require a gradient. A `reward_model` is a model, a
function or a source.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from peft import LoraConfig, PeftModel
from torch import nn
from transformers import PreTrainedModel

from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.roles import Policy, ValueModel
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.targets import begun
from rlhf_fast.rewards.chosen import refuse_columns, with_retries
from rlhf_fast.rewards.classifier import AdapterReward
from rlhf_fast.rewards.function import FunctionReward
from rlhf_fast.rewards.source import RewardSource, WeightedRewards
from rlhf_fast.runtime.device import choose_device
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices
from rlhf_fast.train.roles import Roles, assign_roles
from rlhf_fast.trainer.classifier import ModuleCritic, has_score, open_scorer
from rlhf_fast.trainer.config import PPOConfig
from rlhf_fast.trainer.given import (
    Adapters,
    Given,
    choose_dtype,
    fresh_adapter,
    gigabytes,
    given_adapters,
    lora_layers,
    mirror,
    open_shared,
    place,
    same_weights,
    share,
    whole,
)

FRESH = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
"""The critic's adapter where the policy has none of its own."""


def use_models(
    args: PPOConfig, model: Given, ref_model: Given | None, value_model: Any, peft_config: object | None
) -> tuple[Roles, Given]:
    """The roles, on mirrors of the models given, and the policy as the script's own object, or a PeftModel around it.
    Raises `UsageError` for what cannot be used together."""
    trains_base = not isinstance(model, PeftModel) and peft_config is None
    place("model", model, args, choose_dtype("model", model, args.bf16, train=trains_base))
    given = _adapters(args, model, peft_config)
    join_weights(whole(model))  # what the mirror is to show; trained weights are left alone
    base = mirror(model, trained=trains_base)
    other = _other_reference(args, base, ref_model, trains_base=trains_base)
    same = ref_model is None or _same(base, ref_model)
    shared = share(base, trained=trains_base)
    check_architecture(shared)
    if given is not None:
        given.bind(shared)
    own = Policy(shared, "reference" if given is not None and given.reference else None)
    reference = own if other is None else other
    if reference is not own:
        _check_reference(reference.model, shared)
    lora = FRESH if given is None else begun(given.config)
    at_zero = given is None or given.config.init_lora_weights in (True, "gaussian")
    policy = Policy(shared, None if trains_base else "policy")
    roles = assign_roles(
        str(base.name_or_path), policy, reference,
        args.critic if value_model is None else _value_model(args, value_model),
        recompute=bool(args.activation_checkpointing),
        add_critic=lambda shared: shared.add_adapter("critic", lora, head=True),
        starts_as_reference=same and at_zero and not isinstance(model, PeftModel),
    )  # fmt: skip
    if not any(parameter.requires_grad for _, parameter in policy.named_parameters()):
        notices.warning("no parameter of the model requires a gradient: only the critic is trained.")
    return roles, model if given is None else given.model


def _adapters(args: PPOConfig, model: Given, peft_config: object | None) -> Adapters | None:
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise UsageError(
                "the model is a PeftModel and peft_config is given too. Leave peft_config out to train the model's own "
                "adapter, or pass its base (model.merge_and_unload())."
            )
        return given_adapters(args, model)
    for name in ("model_adapter_name", "ref_adapter_name"):
        args.require(getattr(args, name) is None, name, "nothing unless the model is a PeftModel")
    if peft_config is not None:
        return fresh_adapter(model, peft_config)
    if lora_layers(model):
        raise UsageError(
            "the model has LoRA layers and is no PeftModel: an earlier get_peft_model() or add_adapter() put them "
            "there. Pass the PeftModel (of an earlier PPOTrainer: its policy_model), or peft_config for a new adapter."
        )
    return None


def _other_reference(
    args: PPOConfig, base: PreTrainedModel, ref_model: Given | None, *, trains_base: bool
) -> Policy | None:
    """The reference beside `base`; None where the base without the trained adapter is."""
    if ref_model is None:
        return Policy(SharedModel(copy.deepcopy(base)), None) if trains_base else None
    place("ref_model", ref_model, args, base.dtype)
    if not trains_base:
        if args.ref_adapter_name is not None:
            raise UsageError("ref_model and ref_adapter_name are both set, and there is one reference; leave one out.")
        if _same(base, ref_model):
            notices.warning(
                "ref_model holds the weights of the policy's base and is not used: the base without its adapter gives "
                "the same log-probs. ref_model=None saves its %.2f GB.", gigabytes(ref_model),
            )  # fmt: skip
            return None
        size = gigabytes(ref_model)
        notices.warning("ref_model is used: %.2f GB beside the base that the other roles share.", size)
    return Policy(*open_shared("ref_model", ref_model, trained=False))


def _same(base: PreTrainedModel, ref_model: Given) -> bool:
    """Whether `ref_model` computes what `base` does, as far as weights tell."""
    return not isinstance(ref_model, PeftModel) and same_weights(base, mirror(ref_model, trained=False))


def _check_reference(reference: SharedModel, policy: SharedModel) -> None:
    check_architecture(reference)
    if reference.lm_head[0].shape != policy.lm_head[0].shape:
        raise UsageError(
            f"ref_model has a head of {tuple(reference.lm_head[0].shape)} and the policy one of "
            f"{tuple(policy.lm_head[0].shape)}; expected the same vocabulary and hidden size. Use one base for both."
        )


def _trained_in_float32(model: nn.Module) -> None:
    """Cast the parameters that are trained, in place: a smaller dtype would round small updates away."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _value_model(args: PPOConfig, model: Any) -> ValueModel:
    if isinstance(model, PeftModel):
        kept = choose_dtype("value_model", model, args.bf16, train=False)
        place("value_model", model, args, kept)
        _trained_in_float32(whole(model))
    elif isinstance(model, PreTrainedModel):
        place("value_model", model, args, choose_dtype("value_model", model, None, train=True))
    elif isinstance(model, nn.Module):
        _trained_in_float32(model)
    critic = open_scorer("value_model", model, choose_device(args.use_cpu), args.max_tokens_per_micro_batch, train=True)
    if isinstance(critic, ModuleCritic):
        args.require(
            not args.bootstrap_truncated, "bootstrap_truncated", "false with a value_model that is not read packed"
        )
    size = sum(p.numel() * p.element_size() for _, p in critic.named_parameters() if p.requires_grad) / 1e9
    if not size:
        raise UsageError("no parameter of value_model requires a gradient, so no value would be learnt. Unfreeze some.")
    notices.warning(
        "value_model is a model of its own: %.2f GB of it are trained, with gradient and Adam's moments. "
        "value_model=None trains an adapter on the shared base instead.", 4 * size,
    )  # fmt: skip
    return critic


def build_reward(reward_model: Any, args: PPOConfig, columns: Mapping[str, Sequence[Any]]) -> WeightedRewards:
    """A classifier or any module with `base_model_prefix` and `score` (on the sampled token ids, at the last one), a
    function of texts, or a reward source.

    `columns` are the dataset's, which a function is called with and an endpoint is sent. Raises `UsageError` for
    anything else.
    """
    special = args.reward_special_tokens
    if isinstance(reward_model, WeightedRewards):
        reward_model.special_tokens |= special
        return reward_model
    source = _source(reward_model, args)
    refuse_columns([(source, 1.0)], columns)
    if isinstance(source, AdapterReward):
        args.require(args.reward_timeout is None, "reward_timeout", "nothing where the reward is a model")
        args.require(not special, "reward_special_tokens", "false where the reward is a model, which reads token ids")
        return WeightedRewards([(source, 1.0)])
    asked = with_retries([(source, 1.0)], timeout=args.reward_timeout, retries=args.reward_retries)
    return WeightedRewards(asked, special_tokens=special)


def _source(reward_model: Any, args: PPOConfig) -> RewardSource:
    if isinstance(reward_model, (PreTrainedModel, PeftModel)):
        dtype = choose_dtype("reward_model", reward_model, None, train=False)
        place("reward_model", reward_model, args, dtype)
    if isinstance(reward_model, (PreTrainedModel, PeftModel)) or has_score(reward_model):
        device = choose_device(args.use_cpu)
        scorer = open_scorer("reward_model", reward_model, device, args.max_tokens_per_micro_batch)
        if isinstance(scorer, ModuleCritic):
            return scorer
        return AdapterReward("reward_model", scorer, MicroBatches.of(args))
    if isinstance(reward_model, nn.Module):
        raise UsageError(
            f"reward_model is a {type(reward_model).__name__}; expected a model of transformers, a module with "
            "base_model_prefix and score, a function of (prompts, responses, **columns), or a reward source. "
            "Wrap it in a function."
        )
    if hasattr(reward_model, "score") and hasattr(reward_model, "name"):
        return cast("RewardSource", reward_model)
    if not callable(reward_model):
        raise UsageError(
            f"reward_model is {reward_model!r}; expected an AutoModelForSequenceClassification with num_labels=1, a "
            "function of (prompts, responses, **columns), or a reward source."
        )
    name = getattr(reward_model, "__name__", "reward")
    return FunctionReward(name if name.isidentifier() else "reward", reward_model)
