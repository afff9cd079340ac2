"""The adapter that a stage trains: a fresh one as its config chooses, or a copy of another, which has its own shape.

`describe_trained` says in words what is trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from peft import LoraConfig
from torch import nn

from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.errors import UsageError

_LAYER_INDEX = re.compile(r".*\.[^.]*\.(\d+)\.")  # as PEFT reads it for layers_to_transform


def add_trained(
    shared: SharedModel, config: StageConfig, name: str, *, copy_of: str | None, head: bool = False
) -> None:
    """Add adapter `name`: fresh (with a fresh head if asked), or a copy of `copy_of`, its head included.

    Raises `UsageError` for choices that the model or the copied adapter cannot honour.
    """
    check_layers(shared, config)
    if copy_of is None:
        shared.add_adapter(name, lora_config(config, shared), head=head)
        return
    check_shape(shared, config, copy_of)
    shared.copy_adapter(copy_of, name)
    train_only(shared, name, config.lora_layers)


def lora_config(config: StageConfig, shared: SharedModel) -> LoraConfig:
    """The LoRA choices of a stage's config, as PEFT has them."""
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        target_modules=config.lora_target_modules or shared.linear_layers,
        layers_to_transform=config.lora_layers,
    )


def check_layers(shared: SharedModel, config: StageConfig) -> None:
    count = shared.base.config.get_text_config().num_hidden_layers
    if config.lora_layers is not None and not (config.lora_layers and all(0 <= i < count for i in config.lora_layers)):
        raise UsageError(
            f"lora_layers={config.lora_layers} cannot be used: the model has decoder layers 0 to {count - 1}. "
            "Name some of them, or leave lora_layers out for all."
        )


def check_shape(shared: SharedModel, config: StageConfig, adapter: str) -> None:
    """What starts as `adapter` has its rank, scale and layers: another value in the config would be ignored.

    A field at its default follows the adapter.
    """
    own = shared.configs[adapter]
    targets = own.target_modules if isinstance(own.target_modules, str) else sorted(own.target_modules or [])
    asked_targets = None if config.lora_target_modules is None else sorted(config.lora_target_modules)
    for name, asked, has in (
        ("lora_r", config.lora_r, own.r),
        ("lora_alpha", config.lora_alpha, own.lora_alpha),
        ("lora_target_modules", asked_targets, targets),
    ):
        if asked not in (type(config).__dataclass_fields__[name].default, has):
            raise UsageError(
                f"{name}={asked!r} has no effect: training starts from the {adapter} adapter, which has {has!r}. "
                f"Leave {name} out, or start from a full model."
            )


def train_only(shared: SharedModel, name: str, layers: list[int] | None) -> None:
    """Freeze the parameters of adapter `name` on other decoder layers than `layers` (None: train all)."""
    trained = 0
    for key, parameter in shared.named_parameters(name):
        found = _LAYER_INDEX.match(key)
        if layers is None or found is None or int(found[1]) in layers:
            trained += not key.startswith("head.")
        else:
            parameter.requires_grad_(False)
    if not trained:
        shared.remove_adapter(name)
        raise UsageError(f"the adapter has nothing on lora_layers={layers}; choose layers that it adapts.")


def describe_trained(shared: SharedModel, adapter: str | None, named: Iterable[tuple[str, nn.Parameter]]) -> str:
    """What changes of a role: 'LoRA r=16 on all 30 layers, 4,884,480 trainable parameters', or all weights.

    named: the role's parameters with their names, frozen ones among them or not.
    """
    trained = {name: parameter for name, parameter in named if parameter.requires_grad}
    count = sum(parameter.numel() for parameter in trained.values())
    if adapter is None:
        return f"all weights, {count:,} trainable parameters"
    config = shared.configs[adapter]
    ranks = sorted({config.r, *(config.rank_pattern or {}).values()})
    found = {int(match[1]) for name in trained if (match := re.search(r"\.(\d+)\.", name))}
    total = shared.base.config.get_text_config().num_hidden_layers
    where = f"all {total} layers" if len(found) == total else f"layers {spans(sorted(found))} of {total}"
    head = " and a scalar head" if any(name.startswith("head.") for name in trained) else ""
    return f"LoRA r={' and '.join(map(str, ranks))} on {where}{head}, {count:,} trainable parameters"


def spans(numbers: Sequence[int]) -> str:
    """Ascending whole numbers in words: '0 to 3, 7'."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in parts)
