"""Which layers of a base a PEFT `LoraConfig` names, and which of PEFT's options are served here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_fast.runtime.errors import UsageError

_SERVED = {
    "r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "use_rslora",
    "rank_pattern", "alpha_pattern", "fan_in_fan_out",
    # who wrote the file, and for what: no effect on the numbers
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "runtime_config",
}  # fmt: skip


def refuse_unserved(config: LoraConfig) -> None:
    """Raise `UsageError` for an option that is set and would have no effect here (dropout, DoRA, bias, ...)."""
    default = LoraConfig().to_dict()
    given: dict[str, Any] = config.to_dict()
    unserved = [
        f"{key}={value!r}"
        for key, value in given.items()
        if key not in _SERVED and value != default.get(key) and value not in (None, [], {})
    ]
    if unserved:
        raise UsageError(
            f"these LoRA options are not supported: {', '.join(sorted(unserved))}. Supported: r, lora_alpha, "
            "target_modules, exclude_modules, layers_to_transform, layers_pattern, rank_pattern, alpha_pattern, "
            "use_rslora. Leave the others at PEFT's defaults (dropout at 0: rollout and update see the same network)."
        )


def resolve_targets(modules: Mapping[str, nn.Module], head: nn.Module | None, config: LoraConfig) -> list[str]:
    """Names of the linear layers among `modules` that `config` names; PEFT's own matching rules.

    `target_modules=None` takes PEFT's choice for the architecture, "all-linear" every linear layer but `head` (the
    language-model head). Raises `UsageError` when nothing matches, or something that is not a linear layer.
    """
    linear = _linear(modules, head)
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        config.target_modules = linear_layers(modules, head)
    found = [name for name in modules if check_target_module_exists(config, name)]
    for name in found:
        if name not in linear:
            raise UsageError(
                f"LoRA target {name!r} is {'the language-model head' if modules[name] is head else 'no linear layer'}; "
                "adapters go on the linear layers inside the model. Use target_modules='all-linear' or "
                "name such layers."
            )
    if not found:
        raise UsageError(
            f"target_modules={config.target_modules!r} matches no layer of this model. "
            f"Its linear layers are: {', '.join(linear_layers(modules, head))}."
        )
    return found


def linear_layers(modules: Mapping[str, nn.Module], head: nn.Module | None) -> list[str]:
    """Last parts of the names of all linear layers but `head`, sorted, each once."""
    return sorted({name.rsplit(".", 1)[-1] for name in _linear(modules, head)})


def _linear(modules: Mapping[str, nn.Module], head: nn.Module | None) -> set[str]:
    return {n for n, m in modules.items() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}


def default_targets(model_type: str) -> list[str] | str:
    """PEFT's usual target layers for an architecture; every linear layer for one that PEFT does not list."""
    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    return list(known) if known else "all-linear"


def rank_and_scale(config: LoraConfig, name: str) -> tuple[int, float]:
    """Rank and scale (alpha / r, or alpha / sqrt(r) with `use_rslora`) of the adapter on layer `name`."""
    rank_pattern, alpha_pattern = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = rank_pattern.get(get_pattern_key(list(rank_pattern), name), config.r)
    alpha = alpha_pattern.get(get_pattern_key(list(alpha_pattern), name), config.lora_alpha)
    return rank, alpha / (rank**0.5 if config.use_rslora else rank)
