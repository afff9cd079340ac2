"""The dataclasses and helpers beside `PPOConfig` that a TRL script parses, for a machine without TRL."""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import LoraConfig

from rlhf_fast.runtime.errors import UsageError


@dataclass
class ScriptArguments:
    """Which dataset the script loads."""

    dataset_name: str | None = field(default=None, metadata={"help": "Name or path of the dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})


@dataclass
class ModelConfig:
    """How the script loads its models, and the LoRA adapter that is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Name or path of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    dtype: str | None = field(default="float32", metadata={"help": "dtype in which models are loaded, or auto."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether the script may run a model's own code."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention at loading; training packs."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter; else all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapter's scale is lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Switched off in PPO, as in TRL."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Layers that get an adapter."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "Written to the adapter's file."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale lora_alpha / sqrt(lora_r)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Refused: plain weights are trained here."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Refused: plain weights are trained here."})


def get_peft_config(model_args: ModelConfig) -> LoraConfig | None:
    """None unless `use_peft`."""
    if not model_args.use_peft:
        return None
    targets = model_args.lora_target_modules
    return LoraConfig(
        task_type=model_args.lora_task_type, r=model_args.lora_r, lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout, use_rslora=model_args.use_rslora, bias="none",
        target_modules=targets[0] if targets is not None and len(targets) == 1 else targets,
    )  # fmt: skip


def get_quantization_config(model_args: ModelConfig) -> None:
    """None. Raises `UsageError` where the script asks for quantised weights."""
    if model_args.load_in_8bit or model_args.load_in_4bit:
        raise UsageError("load_in_8bit and load_in_4bit are not supported: adapters are trained on plain weights.")


def get_kbit_device_map() -> None:
    """None: the trainer places the models."""
