"""Policy, reference and critic from the models that a script hands over.

given                       policy                      reference                        critic without a value model
a model and a peft_config   fresh adapter               the base without it              adapter on the same base
a PeftModel                 its adapter                 the base, or ref_adapter_name    adapter on the same base
a model                     the model itself, float32   a frozen copy of it              adapter on the reference

A `ref_model` takes the reference's place, unless its weights are those that the base gives anyway. A `value_model` is
a critic of its own, trained whole.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.critics import PolicyHeadCritic, ReferenceCritic, ValueModel
from rlhf_fast.model.head import ScalarHead
from rlhf_fast.model.roles import Policy, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.device import choose_device
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.trainer.adapters import GivenAdapters, checked
from rlhf_fast.trainer.classifier import open_classifier
from rlhf_fast.trainer.config import PPOConfig

logger = logging.getLogger("rlhf_fast.notices")


@dataclass(frozen=True)
class GivenRoles:
    """starts_as_reference: before the first update policy and reference are the same network."""

    policy: Policy
    reference: Policy
    critic: ValueModel
    starts_as_reference: bool
    base: str  # where the policy's base came from


def build_roles(
    args: PPOConfig, model: PreTrainedModel | PeftModel, ref_model: PreTrainedModel | None,
    value_model: PreTrainedModel | None, peft_config: object | None,
) -> GivenRoles:  # fmt: skip
    """The roles; the models given are changed in place. Raises `UsageError` for what cannot be used together."""
    given = _adapters(args, model, peft_config)
    base: PreTrainedModel = given.model if given is not None else model  # type: ignore[assignment]
    lora = None if peft_config is None else checked(peft_config)
    trains_base = given is None and lora is None
    dtype = choose_dtype(args, base, train=trains_base)
    for each in (base, ref_model):
        if each is not None:
            place(each, args, dtype)
    same = ref_model is None or same_weights(base, ref_model)
    other = _other_reference(args, base, ref_model, same=same, trains_base=trains_base)
    shared = SharedModel(base, train_base=trains_base)
    check_architecture(shared)
    if given is not None:
        given.load(shared)
        lora = given.configs[given.trained]
    elif lora is not None:
        shared.add_adapter("policy", lora)
    own = Policy(shared, "reference" if given is not None and given.reference else None)
    reference = own if other is None else Policy(_opened_reference(other, shared), None)
    critic = _critic(args, reference.model if trains_base else shared, lora, value_model)
    if args.activation_checkpointing:
        for each_model in {id(m): m for m in (shared, *critic.models)}.values():
            each_model.checkpoint_activations()
    policy = Policy(shared, None if trains_base else "policy")
    return GivenRoles(policy, reference, critic, same and given is None, str(base.name_or_path))


def _adapters(args: PPOConfig, model: PreTrainedModel | PeftModel, peft_config: object | None) -> GivenAdapters | None:
    if isinstance(model, PeftModel):
        if peft_config is not None:
            raise UsageError(
                "the model is a PeftModel and peft_config is given too. Leave peft_config out to train the model's own "
                "adapter, or pass its base (model.merge_and_unload())."
            )
        return GivenAdapters(model, args)
    for name in ("model_adapter_name", "ref_adapter_name"):
        args.require(getattr(args, name) is None, name, "nothing unless the model is a PeftModel")
    return None


def _other_reference(
    args: PPOConfig, base: PreTrainedModel, ref_model: PreTrainedModel | None, *, same: bool, trains_base: bool
) -> PreTrainedModel | None:
    """The model that is the reference beside `base`; None where the base without the trained adapter is."""
    if trains_base:
        return copy.deepcopy(base) if ref_model is None else ref_model
    if ref_model is None:
        return None
    if args.ref_adapter_name is not None:
        raise UsageError("ref_model and ref_adapter_name are both set, and there is one reference; leave one of them.")
    if same:
        logger.warning(
            "ref_model holds the weights of the policy's base and is not used: the base without its adapter gives the "
            "same log-probs. ref_model=None saves its %.2f GB.", gigabytes(ref_model),
        )  # fmt: skip
        return None
    logger.warning("ref_model is used: %.2f GB beside the base that the other roles share.", gigabytes(ref_model))
    return ref_model


def _opened_reference(model: PreTrainedModel, policy: SharedModel) -> SharedModel:
    reference = SharedModel(model)
    check_architecture(reference)
    if reference.lm_head[0].shape != policy.lm_head[0].shape:
        raise UsageError(
            f"ref_model has a head of {tuple(reference.lm_head[0].shape)} and the policy one of "
            f"{tuple(policy.lm_head[0].shape)}; expected the same vocabulary and hidden size. Use one base for both."
        )
    return reference


def _critic(
    args: PPOConfig, shared: SharedModel, lora: LoraConfig | None, value_model: PreTrainedModel | None
) -> ValueModel:
    if isinstance(value_model, PeftModel):
        raise UsageError("value_model is a PeftModel; pass a plain classifier, or leave it out for an adapter critic.")
    if value_model is not None:
        place(value_model, args, torch.float32)
        logger.warning(
            "value_model is trained whole: %.2f GB with gradient and Adam's moments. value_model=None trains an "
            "adapter on the shared base instead.", 4 * gigabytes(value_model),
        )  # fmt: skip
        return open_classifier("value_model", value_model, train=True)
    if args.critic == "policy_head":
        return PolicyHeadCritic(ScalarHead(shared.hidden_size, shared.device))
    if args.critic == "reference_mlp":
        return ReferenceCritic(shared.hidden_size, shared.device)
    shared.add_adapter("critic", lora or LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"), head=True)
    return adapter_critic(shared, "critic")


def choose_dtype(args: PPOConfig, model: PreTrainedModel, *, train: bool) -> torch.dtype:
    """As `bf16` says, else as the model was loaded; float32 where its weights are trained themselves."""
    asked = {None: model.dtype, True: torch.bfloat16, False: torch.float32}[args.bf16]
    if train and asked != torch.float32:
        logger.warning("all weights are trained, in float32: bfloat16 would round small updates away")
        return torch.float32
    if asked not in (torch.float32, torch.bfloat16):
        raise UsageError(f"the model was loaded as {asked}; expected float32 or bfloat16. Load it with dtype=bfloat16.")
    return asked


def place(model: PreTrainedModel, args: PPOConfig, dtype: torch.dtype) -> None:
    """Move `model` to the device and dtype, in place. Raises `UsageError` for a quantised one."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise UsageError(f"{type(model).__name__} is quantised; plain weights are trained here. Load it unquantised.")
    model.to(device=choose_device(args.use_cpu), dtype=dtype)  # type: ignore[call-arg]


def same_weights(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    """Whether both hold the same parameters, of the same names and values."""
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(p, theirs[name]) for name, p in mine.items())


def gigabytes(model: PreTrainedModel) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
