"""How much memory a run holds from its first step to its last, and whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from rlhf_fast.model.roles import Policy, ValueModel
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.memory import bytes_of
from rlhf_fast.runtime.optimiser import Optimiser


def held_bytes(models: Iterable[SharedModel], optimiser: Optimiser) -> dict[str, int]:
    """Bytes of the models with their adapters and heads, of the gradients, and of AdamW's moments; a model that is
    given twice counts once."""
    different = {id(model): model for model in models}.values()
    parameters = [parameter for model in different for parameter in model.base.parameters()]
    heads = [p for model in different for name in model.configs for p in model.parameters(name)]
    return {"models and adapters": bytes_of([*parameters, *heads]), **training_bytes(optimiser)}


def training_bytes(optimiser: Optimiser) -> dict[str, int]:
    """Bytes of the gradients that are there now and of AdamW's moments."""
    gradients = [parameter.grad for parameter in optimiser.parameters if parameter.grad is not None]
    moments = [value for moment in optimiser.adamw.state.values() for value in moment.values()]
    return {"gradients": bytes_of(gradients), "optimiser": bytes_of(x for x in moments if isinstance(x, Tensor))}


def tensors_by_owner(
    policy: Policy, reference: Policy, critic: ValueModel, others: Sequence[nn.Module] = ()
) -> dict[str, list[Tensor]]:
    """The parameters and buffers of PPO's roles, each once, by the owners of a memory table.

    The shared base is the reference's, with the adapter that makes it the reference. others: modules beside the roles,
    such as a classifier that gives the reward.
    """
    home = reference.model
    models = {id(model): model for model in (home, policy.model, *critic.models)}.values()
    whole = {id(p) for model in critic.models if model.train_base for p in model.base.parameters()}
    owned: dict[str, list[Tensor]] = {}
    owned["critic adapter and head"] = [p for _, p in critic.named_parameters() if id(p) not in whole]
    if policy.adapter is not None:
        owned["policy adapter"] = [*policy.model.parameters(policy.adapter)]
    taken = {id(parameter) for parameters in owned.values() for parameter in parameters}
    kept = () if reference.adapter is None else home.parameters(reference.adapter)
    taken |= {id(parameter) for parameter in kept}
    unnamed = [p for model in models for name in model.configs for p in model.parameters(name)]
    owned["reward adapter and head"] = _new(unnamed, taken)
    owned["shared base"] = [*kept, *_new([*home.base.parameters(), *home.base.buffers()], taken)]
    beside = [module for model in models for module in (model.base,) if model is not home]
    all_others = [x for module in (*beside, *others) for x in (*module.parameters(), *module.buffers())]
    owned["other models"] = _new(all_others, taken)
    return {owner: list(tensors) for owner, tensors in owned.items() if tensors}


def _new(tensors: Iterable[Tensor], taken: set[int]) -> list[Tensor]:
    """Those that are not `taken` yet; they are then."""
    found = {id(tensor): tensor for tensor in tensors if id(tensor) not in taken}
    taken |= found.keys()
    return list(found.values())
