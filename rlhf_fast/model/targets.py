"""Which layers of a base a PEFT `LoraConfig` names, and which of PEFT's options are served here."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

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


def begun(config: LoraConfig) -> LoraConfig:
    """A copy for an adapter that is there: how A and B began no longer matters, unless the base was changed by it."""
    config = copy.deepcopy(config)
    if config.init_lora_weights in (False, "gaussian", "orthogonal"):
        config.init_lora_weights = True
    return config


@dataclass(frozen=True)
class Places:
    """Where adapters can go in a model, by name of the module.

    linear: the linear layers that read text: those of its decoder layers and directly below the decoder. By exact
    class: a router that is a subclass of a linear layer returns something else.
    outside: modules elsewhere, such as the layers of a vision tower, which see no text.
    as_experts: linear layers whose names PEFT takes for those of experts that transformers holds in one tensor since
    version 5 (`gate_proj` of a shared expert, say): it would not find an adapter for them in a file.
    """

    linear: frozenset[str]
    outside: frozenset[str]
    as_experts: frozenset[str]
    head: nn.Module | None


def find_places(model: PreTrainedModel, decoder_layers: Sequence[nn.Module]) -> Places:
    """The places of a transformers model with these decoder layers (none known: its whole decoder)."""
    head, decoder = model.get_output_embeddings(), model.get_decoder()
    inside = {module for layer in decoder_layers or [decoder] for module in layer.modules()} | set(decoder.children())
    around = {model.get_submodule(name.rpartition(".")[0]) for name, m in model.named_modules() if m in inside}
    linear = {n for n, m in model.named_modules() if type(m) in (nn.Linear, Conv1D) and m in inside and m is not head}
    outside = {n for n, m in model.named_modules() if m not in inside | around | {model, head}}
    as_experts = {name for name in linear if _read_as_expert(model, name.rpartition(".")[2])}
    return Places(frozenset(linear - as_experts), frozenset(outside), frozenset(as_experts), head)


def _read_as_expert(model: PreTrainedModel, name: str) -> bool:
    """Whether PEFT moves the target `name` to the parameters of fused experts when it opens a file for `model`."""
    try:
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # a PEFT that knows nothing of fused experts
        return False
    config = LoraConfig(target_modules=[name])
    try:
        convert(config, model, None)
    except ValueError:  # it asks for the other target of the same parameter
        return True
    return name not in (config.target_modules or ())


def resolve_targets(modules: Mapping[str, nn.Module], places: Places, config: LoraConfig) -> list[str]:
    """Names of the linear layers among `modules` that `config` names; PEFT's own matching rules.

    "all-linear" takes every one of `places`. What is named outside of these is left alone, and written to
    `config.exclude_modules`, so that PEFT leaves it alone too. Raises `UsageError` when nothing matches, or something
    in the decoder that is not a linear layer.
    """
    if isinstance(config.target_modules, str) and config.target_modules.lower() == "all-linear":
        config.target_modules = linear_layers(modules, places)
    found = [name for name in modules if check_target_module_exists(config, name)]
    inside = [name for name in found if name not in places.outside]
    for name in inside:
        if name not in places.linear:
            raise UsageError(
                f"LoRA target {name!r} is {_what(name, modules[name], places)}; adapters go on the linear layers "
                "inside the model. Use target_modules='all-linear' or name such layers."
            )
    if not inside:
        where = f"only {found[0]!r} and others that read no text" if found else "no layer of this model"
        raise UsageError(
            f"target_modules={config.target_modules!r} matches {where}. "
            f"Its linear layers are: {', '.join(linear_layers(modules, places))}."
        )
    if missing := _unmatched(config, inside):
        notices.warning("target_modules names %s, which is no linear layer here: no adapter for it", ", ".join(missing))
    _exclude(config, [name for name in found if name in places.outside])
    return inside


def _what(name: str, module: nn.Module, places: Places) -> str:
    if module is places.head:
        return "the language-model head"
    return (
        "named as PEFT names experts, which it looks for elsewhere" if name in places.as_experts else "no linear layer"
    )


def _unmatched(config: LoraConfig, found: list[str]) -> list[str]:
    """The names in a list of targets that none of the layers `found` has."""
    targets = [] if isinstance(config.target_modules, str) else config.target_modules or []
    return sorted(t for t in targets if not any(name == t or name.endswith(f".{t}") for name in found))


def _exclude(config: LoraConfig, names: list[str]) -> None:
    """Add `names` to what the config excludes, in the form that it has."""
    if names and isinstance(config.exclude_modules, str):
        config.exclude_modules = "|".join([f"(?:{config.exclude_modules})", *map(re.escape, names)])
    elif names:
        config.exclude_modules = [*(config.exclude_modules or []), *names]


def linear_layers(modules: Mapping[str, nn.Module], places: Places) -> list[str]:
    """Names for `target_modules` that match all of `places.linear` and nothing else in the decoder, sorted: the last
    part of a layer's name, or where others share it, all of the name but its first part."""
    last: dict[str, set[str]] = {}
    for name in modules:
        if name not in places.outside:
            last.setdefault(name.rpartition(".")[2], set()).add(name)
    return sorted(
        {
            short if last[short := name.rpartition(".")[2]] <= places.linear else name.partition(".")[2]
            for name in places.linear
        }
    )


def fused_experts(decoder_layers: Sequence[nn.Module]) -> tuple[str, float] | None:
    """The class that holds the weights of many experts in one parameter, and its share of the layers' weights."""
    held = [
        (m, p) for layer in decoder_layers for m in layer.modules() for p in m.parameters(recurse=False) if p.dim() == 3
    ]
    if not held:
        return None
    total = sum(p.numel() for layer in decoder_layers for p in layer.parameters())
    return type(held[0][0]).__name__, sum(p.numel() for _, p in held) / total


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
