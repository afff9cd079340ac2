"""Write a trained model as transformers opens it: `AutoModelForCausalLM`, and a reward adapter as
`AutoModelForSequenceClassification`."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.data.rendering import Rendering
from rlhf_fast.export.card import read_facts, write_card
from rlhf_fast.export.config import ExportConfig
from rlhf_fast.export.gguf import gguf_metadata, gguf_name, write_gguf
from rlhf_fast.export.gguf_tokenizer import ends_metadata
from rlhf_fast.export.merged import classifier_of, merge
from rlhf_fast.model.adapter_files import has_head
from rlhf_fast.model.load import load_shared, load_tokenizer, refuse_missing, resolve_source
from rlhf_fast.model.shared import eos_ids
from rlhf_fast.rollout.sampling import end_with, stop_ids
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, write_folder
from rlhf_fast.runtime.output import refuse_unwritable

logger = logging.getLogger(__name__)


def run_export(config: ExportConfig) -> Path:
    """Write weights, tokenizer, chat template and model card; returns the folder, which is whole or not there.

    With `gguf` the same weights once more as `gguf_name` in it. Weights are added up in float32 and rounded once to
    `dtype`, and once to the type of `gguf`. An adapter with a scalar head becomes a sequence classifier. Raises
    `UsageError`.
    """
    path, output = _paths(config)
    source = resolve_source(path)
    is_reward, bias = source.adapter is not None and has_head(source.adapter), 0.0
    _refuse_choices(config, path, is_reward=is_reward)
    refuse_missing(source.base)
    tokenizer = load_tokenizer(path)
    own = AutoConfig.from_pretrained(source.base, trust_remote_code=False)
    file = gguf_name(output.name, config.gguf) if config.gguf != "none" else None
    metadata = gguf_metadata(own, tokenizer, output.name) if file else {}
    shared, name = load_shared(path, dtype=torch.float32)
    rendering, facts = Rendering.read(path), read_facts(Path(path))
    if name is not None and is_reward:
        model, bias = classifier_of(shared, name, tokenizer, leave_out_bias=config.head_bias == "leave_out")
    else:
        merge(shared, name)
        model = shared.base
        ends = _end(model, tokenizer, rendering)
        metadata |= ends if file else {}
    if bias:
        logger.warning("every logit of %s is the reward's score less %.6g, as its card says", output, bias)
    dtype = _dtype(config.dtype, own)

    def fill(folder: Path) -> None:
        if file:
            write_gguf(folder / file, model, metadata, config.gguf)
        model.to(dtype)  # type: ignore[arg-type]
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if rendering is not None:
            rendering.save(folder)
        write_card(folder, output.name, source, dtype, facts, gguf=file, score_bias=bias if is_reward else None)

    with disk_errors(f"write the model to {config.output_dir!r}", "Nothing is left there."):
        write_folder(output, fill)
    return output


def _paths(config: ExportConfig) -> tuple[str, Path]:
    """Of the model and of the folder to write."""
    refuse_many("export")
    if not config.model_path:
        raise UsageError("export needs model_path: the output folder of sft, reward or ppo.")
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


def _refuse_choices(config: ExportConfig, path: str, *, is_reward: bool) -> None:
    """Raise `UsageError` for fields that have no place in what is written."""
    if is_reward and config.gguf != "none":
        raise UsageError(
            f"gguf={config.gguf!r} cannot be used: {path!r} is a reward model, and GGUF has no place for its scalar "
            "head. Export with gguf='none'."
        )
    if not is_reward and config.head_bias != "exact":
        raise UsageError(
            f"head_bias={config.head_bias!r} cannot be used: {path!r} is no reward adapter and has no head. "
            "Leave it out."
        )


def _dtype(chosen: str, own: PreTrainedConfig) -> torch.dtype:
    if chosen != "auto":
        return getattr(torch, chosen)
    return own.dtype if isinstance(own.dtype, torch.dtype) else torch.float32
