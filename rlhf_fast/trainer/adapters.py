"""LoRA as a script hands it over: a `peft_config`, or a `PeftModel` that has its adapters already."""

from __future__ import annotations

import copy
import logging
import tempfile
from pathlib import Path

from peft import LoraConfig, PeftModel
from transformers import PreTrainedModel

from rlhf_fast.model.adapter_files import load_adapter
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.trainer.config import PPOConfig

logger = logging.getLogger("rlhf_fast.notices")


def checked(peft_config: object) -> LoraConfig:
    """A copy with dropout off, as TRL switches it off. Raises `UsageError` for anything but a `peft.LoraConfig`."""
    if not isinstance(peft_config, LoraConfig):
        raise UsageError(
            f"peft_config is a {type(peft_config).__name__}; expected a peft.LoraConfig. LoRA is what is trained here."
        )
    config = copy.deepcopy(peft_config)
    if config.lora_dropout:
        logger.warning("lora_dropout=%s is set to 0: rollout and update see the same network", config.lora_dropout)
        config.lora_dropout = 0.0
    return config


def unloaded(model: PeftModel, folder: Path) -> PreTrainedModel:
    """The base of `model` without its adapters, which are written to `folder`: NAME each."""
    for name in model.peft_config:
        model.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
    if (folder / "adapter_config.json").is_file():  # where PEFT puts the one that is called default
        own = folder / "default"
        own.mkdir()
        for file in folder.glob("adapter_*"):
            file.rename(own / file.name)
    return model.unload()  # type: ignore[operator]


class GivenAdapters:
    """The adapters of a `PeftModel`, on disk between its base and ours. `model` is the base, without them."""

    def __init__(self, model: PeftModel, args: PPOConfig) -> None:
        self.trained, self.reference = args.model_adapter_name or model.active_adapter, args.ref_adapter_name
        for field, name in (("model_adapter_name", self.trained), ("ref_adapter_name", self.reference)):
            if name is not None and name not in model.peft_config:
                raise UsageError(f"{field}={name!r} is no adapter of the model; it has {', '.join(model.peft_config)}.")
        self.folder = tempfile.TemporaryDirectory()
        self.configs = {name: checked(config) for name, config in model.peft_config.items()}
        self.model = unloaded(model, Path(self.folder.name))

    def load(self, shared: SharedModel) -> None:
        """Add the trained one as `policy` and the reference's, if there is one, as `reference`."""
        for own, name in (("policy", self.trained), ("reference", self.reference)):
            if name is not None:
                path = Path(self.folder.name) / name
                self.configs[name].save_pretrained(str(path))
                load_adapter(shared, path, own)
        self.folder.cleanup()
