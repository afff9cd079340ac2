"""The models and adapters of a script as it hands them over: moved, cast, and mirrored, so that they stay the script's
own objects.

A mirror has the modules of a model once more, and its tensors: what is trained through the mirror is trained in the
model, and the model keeps its own attention, layers and flags, with which it generates, saves and merges. LoRA comes as
a `peft_config` or in a `PeftModel`; the adapters stay PEFT's, whose own parameters are trained.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.targets import begun, default_targets, find_places, refuse_unserved, resolve_targets
from rlhf_fast.model.trunk import decoder_layers
from rlhf_fast.runtime.device import choose_device
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices
from rlhf_fast.trainer.config import PPOConfig

Given = PreTrainedModel | PeftModel
Factors = dict[str, tuple[nn.Parameter, nn.Parameter, float]]


def whole(model: Given) -> PreTrainedModel:
    """The model of transformers in `model`, with its adapter layers if it has some."""
    return model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore[return-value]


def choose_dtype(role: str, model: Given, bf16: bool | None, *, train: bool) -> torch.dtype:
    """bfloat16 where `bf16` says so, else as the model was loaded; float32 for float16 and for weights that are trained
    themselves, which a line says. Raises `UsageError` for other kinds of weights."""
    loaded = whole(model).dtype
    if loaded not in (torch.float32, torch.bfloat16, torch.float16):
        raise UsageError(f"{role} was loaded as {loaded}; expected float32, bfloat16 or float16. Load it so.")
    asked = torch.bfloat16 if bf16 else loaded
    if train:
        if asked != torch.float32:
            notices.warning(
                "%s: all weights are trained, in float32, as which it is kept from now on: %s would round small "
                "updates away.", role, str(asked).removeprefix("torch."),
            )  # fmt: skip
        return torch.float32
    if asked == torch.float16:
        notices.warning("%s was loaded as float16 and is kept as float32 from now on: nothing is scaled here.", role)
        return torch.float32
    return asked


def place(role: str, model: Given, args: PPOConfig, dtype: torch.dtype) -> None:
    """Move `model` to the device and its weights to `dtype`, in place; LoRA's to float32, buffers keep theirs.

    Raises `UsageError` for a quantised one.
    """
    base = whole(model)
    if getattr(base.config, "quantization_config", None) is not None:
        raise UsageError(f"{role} is quantised ({type(base).__name__}); plain weights are trained here. Load it so.")
    base.to(choose_device(args.use_cpu))  # type: ignore[arg-type]
    factors = {id(p) for layer in lora_layers(base).values() for p in _factors_of(layer)}
    for parameter in base.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if id(parameter) in factors else dtype)


def mirror(model: Given, *, trained: bool) -> PreTrainedModel:
    """The modules of `model` anew, without its adapters, on the same tensors.

    trained: its parameters are those of `model`, with their `requires_grad`; else frozen views of them.
    """
    base = whole(model)
    memo: dict[int, Any] = {id(buffer): buffer for buffer in base.buffers()}
    for parameter in base.parameters():
        own = parameter if trained else nn.Parameter(parameter.detach(), requires_grad=False)
        memo[id(parameter)] = own
    made = copy.deepcopy(base, memo)
    for name, module in list(made.named_modules()):
        if isinstance(module, LoraLayer):
            made.set_submodule(name, module.base_layer)
        elif isinstance(module, ModulesToSaveWrapper):
            made.set_submodule(name, module.modules_to_save[str(module.active_adapter)])
    return made


def share(base: PreTrainedModel, *, trained: bool) -> SharedModel:
    """A mirror as a `SharedModel`; trained: of its parameters those that require a gradient now."""
    flags = [parameter.requires_grad for parameter in base.parameters()]
    shared = SharedModel(base, train_base=trained)
    if trained:
        for parameter, flag in zip(base.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return shared


def lora_layers(base: nn.Module) -> dict[str, LoraLayer]:
    return {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}


def factors(model: PeftModel, adapter: str) -> Factors:
    """A (R, K), B (N, R) and scale of `adapter` by the name of the layer. Raises `UsageError` for what is no LoRA of a
    linear layer, and for adapters that are merged into the weights now."""
    found: Factors = {}
    for name, layer in lora_layers(whole(model)).items():
        if layer.merged:
            raise UsageError("the PeftModel's adapters are merged into its base now; call unmerge_adapter() first.")
        if adapter in layer.lora_A and isinstance(layer.base_layer, (nn.Linear, Conv1D)):
            a, b = (next(part[adapter].parameters()) for part in (layer.lora_A, layer.lora_B))
            found[name] = (a, b, float(layer.scaling[adapter]))
        elif adapter in layer.lora_A or adapter in layer.lora_embedding_A:
            raise UsageError(f"adapter {adapter!r} is on {name!r}, no linear layer; adapters go on linear layers here.")
    return found


def gigabytes(model: Given) -> float:
    return sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether both hold the same parameters, of the same names and values."""
    mine, theirs = dict(one.named_parameters()), dict(other.named_parameters())
    return mine.keys() == theirs.keys() and all(torch.equal(p, theirs[name]) for name, p in mine.items())


def _factors_of(layer: LoraLayer) -> list[nn.Parameter]:
    return [*layer.lora_A.parameters(), *layer.lora_B.parameters()]


FOR_SCORES = ["classifier", "score"]  # what PEFT adds to modules_to_save of a classifier


def checked(peft_config: object) -> LoraConfig:
    """A copy with dropout off, as TRL switches it off. Raises `UsageError` for anything but a `peft.LoraConfig`."""
    if not isinstance(peft_config, LoraConfig):
        raise UsageError(
            f"peft_config is a {type(peft_config).__name__}; expected a peft.LoraConfig. LoRA is what is trained here."
        )
    config = copy.deepcopy(peft_config)
    if config.lora_dropout:
        notices.warning("lora_dropout=%s is set to 0: rollout and update see the same network", config.lora_dropout)
        config.lora_dropout = 0.0
    return config


@dataclass(frozen=True)
class Adapters:
    """The policy's `PeftModel`: which of its adapters is trained, and which is the reference (None: the bare base)."""

    model: PeftModel
    trained: str
    reference: str | None
    config: LoraConfig

    def bind(self, shared: SharedModel) -> None:
        """Serve the trained one as `policy`, on its own parameters, and a copy of the reference's as `reference`."""
        shared.bind_adapter("policy", self.config, factors(self.model, self.trained))
        if self.reference is not None:
            frozen = {
                name: (_frozen(a), _frozen(b), scale)
                for name, (a, b, scale) in factors(self.model, self.reference).items()
            }
            shared.bind_adapter("reference", served(self.model, self.reference), frozen)


def fresh_adapter(model: PreTrainedModel, peft_config: object) -> Adapters:
    """`model` as a `PeftModel` with a new adapter, added in place as `peft.get_peft_model` does."""
    config = checked(peft_config)
    refuse_unserved(begun(config))  # PEFT makes the adapter, with its own ways of beginning
    base = mirror(model, trained=False)
    if config.target_modules is None:
        config.target_modules = default_targets(base.config.model_type)
    resolve_targets(dict(base.named_modules()), find_places(base, decoder_layers(base.get_decoder())), config)
    made = get_peft_model(model, config)
    return Adapters(made, "default", None, config)  # type: ignore[arg-type]


def given_adapters(args: PPOConfig, model: PeftModel) -> Adapters:
    """The adapters that the config names, else the active one. Raises `UsageError` unless it alone can be trained."""
    active = active_adapter("model", model)
    trained, reference = args.model_adapter_name or active, args.ref_adapter_name
    for field, name in (("model_adapter_name", trained), ("ref_adapter_name", reference)):
        if name is not None and name not in model.peft_config:
            raise UsageError(f"{field}={name!r} is no adapter of the model; it has {', '.join(model.peft_config)}.")
    config = served(model, trained)
    if trained != active:
        model.set_adapter(trained)
    own = [p for a, b, _ in factors(model, trained).values() for p in (a, b)]
    if not any(p.requires_grad for p in own):
        raise UsageError(
            f"no parameter of the model's adapter {trained!r} requires a gradient, so nothing would be trained. Load "
            "it with PeftModel.from_pretrained(..., is_trainable=True)."
        )
    layers = lora_layers(whole(model)).values()
    lora = {id(p) for layer in layers for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters())}
    others = [name for name, p in whole(model).named_parameters() if p.requires_grad and id(p) not in lora]
    if others:
        raise UsageError(
            f"beside the adapter {len(others)} parameters of the PeftModel's base require a gradient ({others[0]}, "
            "...) and would not be trained: the reference shares them. Freeze them, or merge the adapter "
            "(model.merge_and_unload()) and train all weights."
        )
    return Adapters(model, trained, reference, config)


def open_shared(role: str, model: Given, *, trained: bool) -> tuple[SharedModel, str | None]:
    """A mirror of `model` and the name under which it serves the model's active adapter, None where it has none."""
    shared = share(mirror(model, trained=trained), trained=trained)
    if not isinstance(model, PeftModel):
        return shared, None
    adapter = active_adapter(role, model)
    shared.bind_adapter("given", served(model, adapter, saved=FOR_SCORES), factors(model, adapter))
    return shared, "given"


def active_adapter(role: str, model: PeftModel) -> str:
    active = model.active_adapters
    if len(active) != 1:
        raise UsageError(f"{role} has {len(active)} active adapters; expected one. Choose it with set_adapter(NAME).")
    return active[0]


def served(model: PeftModel, adapter: str, saved: list[str] | None = None) -> LoraConfig:
    """The adapter's config. Raises `UsageError` for PEFT's options that are not served; a classifier's own layer may be
    among modules_to_save (`saved`)."""
    config = checked(model.peft_config[adapter])
    asked = begun(config)
    if saved is not None and set(asked.modules_to_save or ()) <= set(saved):
        asked.modules_to_save = None
    refuse_unserved(asked)
    return config


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=False)
