"""LoRA as a script hands it over: a `peft_config`, or a `PeftModel` that has its adapters already.

The adapters stay PEFT's: training changes the parameters of the `PeftModel` itself.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.targets import begun, default_targets, find_places, refuse_unserved, resolve_targets
from rlhf_fast.model.trunk import decoder_layers
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices
from rlhf_fast.trainer.config import PPOConfig
from rlhf_fast.trainer.given import Given, factors, lora_layers, mirror, share, whole

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
