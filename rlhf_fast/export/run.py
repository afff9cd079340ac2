"""Write a trained model as `AutoModelForCausalLM.from_pretrained` opens it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig

from rlhf_fast.export.card import read_facts, write_card
from rlhf_fast.export.config import ExportConfig
from rlhf_fast.export.merge import merged_model
from rlhf_fast.model.adapter_files import HEAD_WEIGHTS
from rlhf_fast.model.load import Source, load_tokenizer, refuse_missing, resolve_source
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.durable import write_folder
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.output import refuse_unwritable


def run_export(config: ExportConfig) -> Path:
    """Write weights, tokenizer, chat template and model card; returns the folder, which is whole or not there.

    Weights are added up in float32 and rounded once. Raises `UsageError`.
    """
    refuse_many("export")
    if not config.model_path:
        raise UsageError("export needs model_path: the output folder of sft or ppo.")
    output = Path(config.output_dir)
    refuse_unwritable("output_dir", output)
    if output.exists():
        raise UsageError(f"output_dir={config.output_dir!r} is there already. Give another folder, or delete it.")
    source = resolve_source(config.model_path)
    _refuse_reward(source)
    refuse_missing(source.base)
    tokenizer = load_tokenizer(config.model_path)
    model = merged_model(config.model_path)
    model.to(_dtype(config.dtype, source.base))  # type: ignore[arg-type]
    facts = read_facts(Path(config.model_path))

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_card(folder, output.name, source, model.dtype, facts)

    try:
        write_folder(output, fill)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write the model to {config.output_dir!r}: {error}. Make room.") from error
    return output


def _refuse_reward(source: Source) -> None:
    """Its head would be lost."""
    if source.adapter is not None and (Path(source.adapter) / HEAD_WEIGHTS).exists():
        raise UsageError(
            f"{source.adapter!r} is a reward model: a language model has no place for its scalar head. Export what sft "
            "or ppo wrote."
        )


def _dtype(chosen: str, base: str) -> torch.dtype:
    if chosen != "auto":
        return getattr(torch, chosen)
    own = AutoConfig.from_pretrained(base, trust_remote_code=False).dtype
    return own if isinstance(own, torch.dtype) else torch.float32
