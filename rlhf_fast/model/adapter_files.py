"""Adapters on disk in PEFT's format (`peft.PeftModel.from_pretrained` opens them), the scalar head beside them.

A sequence classifier's adapter, as PEFT writes it for `task_type="SEQ_CLS"` (and TRL's reward trainer with LoRA), is
read too: its head is the `score` layer among its weights.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.targets import begun
from rlhf_fast.runtime.errors import UsageError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HEAD_WEIGHTS = "head.safetensors"
_PREFIX = "base_model.model."
_SCORE = re.compile(r"score\.(?:modules_to_save\.(?:default\.)?)?(weight|bias)")  # as versions of PEFT name it
_HEADS = {"score", "classifier"}  # what PEFT puts into modules_to_save of every classifier; the former is a decoder's
logger = logging.getLogger(__name__)


def save_adapter(shared: SharedModel, name: str, folder: str | Path, *, base: str) -> None:
    """Write adapter `name` (and its head, if any) to `folder`; `base` is recorded as the model that it belongs to."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous() for key, value in shared.named_parameters(name)}
    head = {key.removeprefix("head."): value for key, value in tensors.items() if key.startswith("head.")}
    adapter = {_PREFIX + key: value for key, value in tensors.items() if not key.startswith("head.")}
    save_file(adapter, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    if head:
        save_file(head, folder / HEAD_WEIGHTS, metadata={"format": "pt"})
    else:
        (folder / HEAD_WEIGHTS).unlink(missing_ok=True)  # an earlier adapter's head would be taken for this one's
    config = copy.copy(shared.configs[name])
    config.base_model_name_or_path, config.inference_mode = base, True
    config.task_type = "CAUSAL_LM"
    config.save_pretrained(str(folder))


def load_adapter(shared: SharedModel, folder: str | Path, name: str) -> None:
    """Read an adapter written by PEFT or by `save_adapter`, and its head: beside it, or the `score` layer of a sequence
    classifier's. Raises `UsageError`."""
    folder = Path(folder)
    try:
        config = LoraConfig.from_pretrained(str(folder))
        tensors = {k.removeprefix(_PREFIX): value for k, value in load_file(folder / ADAPTER_WEIGHTS).items()}
        head = load_file(folder / HEAD_WEIGHTS) if (folder / HEAD_WEIGHTS).is_file() else None
    except Exception as error:  # PEFT raises what it happens to meet in a config of the wrong kind
        raise UsageError(
            f"cannot read the adapter in {str(folder)!r}: {type(error).__name__}: {error}. Expected {ADAPTER_CONFIG} "
            f"and {ADAPTER_WEIGHTS} as PEFT writes them; train it again or copy it afresh."
        ) from error
    _check_fields(config, folder)
    config = begun(config)
    if head is None and (config.task_type == "SEQ_CLS" or any(map(_SCORE.fullmatch, tensors))):
        head = _take_score(config, tensors, folder)
    try:
        shared.add_adapter(name, config, head=head is not None)
    except UsageError as error:
        raise UsageError(
            f"cannot use the adapter in {str(folder)!r}: {error} If it was trained on another base model, open it with "
            f"that one (its file names {config.base_model_name_or_path!r})."
        ) from error
    _fill(shared, name, tensors, head, folder)


def has_head(folder: str | Path) -> bool:
    """Whether the adapter in `folder` has a scalar head, by its files; False where they cannot be read."""
    folder = Path(folder)
    if (folder / HEAD_WEIGHTS).is_file():
        return True
    try:
        with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
            return any(_SCORE.fullmatch(key.removeprefix(_PREFIX)) for key in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError):
        return False


def refuse_headless(shared: SharedModel, name: str, path: str) -> None:
    """Raise `UsageError` unless adapter `name`, which was read from `path`, has a scalar head."""
    if name not in shared.heads:
        raise UsageError(
            f"the adapter {path!r} has no scalar head, so it is no reward model; expected {HEAD_WEIGHTS}, or a `score` "
            f"layer in {ADAPTER_WEIGHTS} (task_type SEQ_CLS)."
        )


def _take_score(config: LoraConfig, tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor] | None:
    """The `score` layer of a classifier's adapter as the tensors of a scalar head, taken out of `tensors`; `config`
    is changed to that of the adapter alone. None where it has none. Raises `UsageError` for other than one output."""
    found = {match[1]: tensors.pop(key) for key in list(tensors) if (match := _SCORE.fullmatch(key))}
    if set(config.modules_to_save or ()) <= _HEADS:
        config.modules_to_save = None
    if config.lora_dropout:
        logger.warning(
            "lora_dropout=%s of %s is set to 0: a reward model is read as in evaluation, and a critic that starts from "
            "it is trained without", config.lora_dropout, folder,
        )  # fmt: skip
        config.lora_dropout = 0.0
    if "weight" not in found:
        return None
    weight = found["weight"]
    if weight.dim() != 2 or len(weight) != 1:
        raise UsageError(
            f"the adapter in {str(folder)!r} is a classifier with a score of shape {tuple(weight.shape)}; expected one "
            "output (num_labels=1), as a reward model has."
        )
    return {"weight": weight[0], "bias": found.get("bias", weight.new_zeros(1)).squeeze()}


def _check_fields(config: Any, folder: Path) -> None:
    """PEFT takes what stands in the file; a value of the wrong kind would fail in the middle of a layer."""
    if not isinstance(config, LoraConfig):
        raise UsageError(f"the adapter in {str(folder)!r} is of {type(config).__name__}; expected LoRA. Train one.")
    whole = (int, "a positive whole number", lambda value: not isinstance(value, bool) and value > 0)
    number = ((int, float), "a number", lambda value: True)
    names = ((str, list, set, type(None)), "a pattern or a list of names", _is_pattern)
    by_layer = (dict, "an object of names and numbers", lambda value: True)
    kinds: dict[str, tuple[Any, str, Callable[[Any], bool]]] = {
        "r": whole, "lora_alpha": number, "target_modules": names, "exclude_modules": names, "rank_pattern": by_layer,
        "alpha_pattern": by_layer,
    }  # fmt: skip
    for field, (kind, expected, check) in kinds.items():
        value = getattr(config, field)
        if not isinstance(value, kind) or not check(value):
            raise UsageError(
                f"cannot read the adapter in {str(folder)!r}: {field} in {ADAPTER_CONFIG} is {value!r}, expected "
                f"{expected}; train it again or copy it afresh."
            )


def _is_pattern(value: Any) -> bool:
    try:
        return not isinstance(value, str) or bool(re.compile(value))
    except re.error:
        return False


@torch.no_grad()
def _fill(
    shared: SharedModel, name: str, tensors: dict[str, torch.Tensor], head: dict[str, torch.Tensor] | None, folder: Path
) -> None:
    tensors |= {f"head.{key}": value for key, value in (head or {}).items()}
    parameters = dict(shared.named_parameters(name))
    if parameters.keys() != tensors.keys():
        missing, extra = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
        shared.remove_adapter(name)
        raise UsageError(
            f"the adapter in {str(folder)!r} does not fit this base: missing {missing[:3]}, unexpected {extra[:3]}. "
            "Open it with the base model that it was trained on."
        )
    for key, parameter in parameters.items():
        if parameter.shape != tensors[key].shape:
            shared.remove_adapter(name)
            raise UsageError(
                f"the adapter in {str(folder)!r} does not fit this base: {key} is {tuple(tensors[key].shape)}, "
                f"expected {tuple(parameter.shape)}. Open it with the base model that it was trained on."
            )
        parameter.copy_(tensors[key])
