"""Write a trained model as `AutoModelForCausalLM.from_pretrained` opens it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.data.rendering import Rendering
from rlhf_fast.export.card import read_facts, write_card
from rlhf_fast.export.config import ExportConfig
from rlhf_fast.export.gguf_file import gguf_metadata, gguf_name, write_gguf
from rlhf_fast.export.gguf_tokenizer import ends_metadata
from rlhf_fast.export.merge import merged_model
from rlhf_fast.model.adapter_files import HEAD_WEIGHTS
from rlhf_fast.model.load import Source, load_tokenizer, refuse_missing, resolve_source
from rlhf_fast.model.shared import eos_ids
from rlhf_fast.rollout.sampling import end_with, stop_ids
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.durable import write_folder
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.output import refuse_unwritable


def run_export(config: ExportConfig) -> Path:
    """Write weights, tokenizer, chat template and model card; returns the folder, which is whole or not there.

    With `gguf` the same weights once more as `gguf_name` in it. Weights are added up in float32 and rounded once to
    `dtype`, and once to the type of `gguf`. Raises `UsageError`.
    """
    path, output = _paths(config)
    source = resolve_source(path)
    _refuse_reward(source)
    refuse_missing(source.base)
    tokenizer = load_tokenizer(path)
    own = AutoConfig.from_pretrained(source.base, trust_remote_code=False)
    file = gguf_name(output.name, config.gguf) if config.gguf != "none" else None
    metadata = gguf_metadata(own, tokenizer, output.name) if file else {}
    model, dtype, rendering = merged_model(path), _dtype(config.dtype, own), Rendering.read(path)
    ends = _end(model, tokenizer, rendering)
    metadata |= ends if file else {}
    facts = read_facts(Path(path))

    def fill(folder: Path) -> None:
        if file:
            write_gguf(folder / file, model, metadata, config.gguf)
        model.to(dtype)  # type: ignore[arg-type]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if rendering is not None:
            rendering.save(folder)
        write_card(folder, output.name, source, dtype, facts, file)

    try:
        write_folder(output, fill)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot write the model to {config.output_dir!r}: {error}. Make room.") from error
    return output


def _paths(config: ExportConfig) -> tuple[str, Path]:
    """Of the model and of the folder to write."""
    refuse_many("export")
    if not config.model_path:
        raise UsageError("export needs model_path: the output folder of sft or ppo.")
    output = Path(config.output_dir)
    refuse_unwritable("output_dir", output)
    if output.exists():
        raise UsageError(f"output_dir={config.output_dir!r} is there already. Give another folder, or delete it.")
    return config.model_path, output


def _end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rendering: Rendering | None) -> dict[str, int]:
    """Write what ends a response of `model` here into its configs; returns the same in the words of GGUF."""
    stop_token_id = rendering.stop_token_id if rendering else None
    if stop_token_id is None and tokenizer.eos_token_id is None:
        return {}
    stop = stop_ids(tokenizer, stop_token_id=stop_token_id, model_eos=eos_ids(model))
    end_with(model, stop)
    return ends_metadata(stop, tokenizer.eos_token_id)


def _refuse_reward(source: Source) -> None:
    """Its head would be lost."""
    if source.adapter is not None and (Path(source.adapter) / HEAD_WEIGHTS).exists():
        raise UsageError(
            f"{source.adapter!r} is a reward model: a language model has no place for its scalar head. Export what sft "
            "or ppo wrote."
        )


def _dtype(chosen: str, own: PreTrainedConfig) -> torch.dtype:
    if chosen != "auto":
        return getattr(torch, chosen)
    return own.dtype if isinstance(own.dtype, torch.dtype) else torch.float32
