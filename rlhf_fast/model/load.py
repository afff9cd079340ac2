"""Opening a base model and its tokenizer from a folder or a hub name, with errors that name the remedy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_fast.model.adapter_files import ADAPTER_CONFIG, load_adapter
from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.rope import tell_of_rope
from rlhf_fast.model.sharding import shard_base
from rlhf_fast.model.shared import SharedModel, context_length, generation_length
from rlhf_fast.runtime.errors import UsageError


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a base, and the adapter folder on top of it if the path named one."""

    base: str
    adapter: str | None


def resolve_source(path: str) -> Source:
    """A PEFT adapter folder names its base in `adapter_config.json`; anything else is a base itself."""
    config = Path(path) / ADAPTER_CONFIG
    if not config.is_file():
        return Source(path, None)
    facts = read_object(config, "Train the adapter again or copy it afresh.")
    base = facts.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise UsageError(
            f"{config} does not name its base model (got {base!r}); set base_model_name_or_path in it to a folder or "
            "hub name."
        )
    return Source(base, path)


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of a model folder. Raises `UsageError` for anything else in it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read {path}: {error}. {remedy}") from error
    if not isinstance(value, dict):
        raise UsageError(f"cannot read {path}: it holds a JSON {type(value).__name__}, expected an object. {remedy}")
    return value


def load_shared(
    path: str, *, dtype: torch.dtype, device: torch.device | str = "cpu", adapter: str = "sft",
    train_base: bool = False, shard: bool = False,
) -> tuple[SharedModel, str | None]:  # fmt: skip
    """Open `path`; returns the shared model and the adapter's name, or None where `path` is a plain model.

    An adapter folder opens its base, and its adapter under the name `adapter`. shard: divide the base's layers among
    the processes; each reads and checks the whole base in main memory first.
    """
    source = resolve_source(path)
    model = load_causal_lm(source.base, dtype=dtype)
    if not shard:
        model.to(device)  # type: ignore[arg-type]
    shared = SharedModel(model, train_base=train_base)
    join_weights(shared.base)
    check_architecture(shared)
    if shard:
        shard_base(shared, torch.device(device))
    if source.adapter is None:
        return shared, None
    load_adapter(shared, source.adapter, adapter)
    return shared, adapter


def load_causal_lm(path: str, *, dtype: torch.dtype) -> PreTrainedModel:
    """`AutoModelForCausalLM` from safetensors; never remote code. Raises `UsageError`."""
    refuse_missing(path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise UsageError(
                f"{path} is a quantised model ({config.quantization_config}); adapters are trained on "
                "plain weights here. "
                "Load the unquantised model."
            )
        loaded = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
        model, info = cast("tuple[PreTrainedModel, dict[str, set[str]]]", loaded)
        if info["missing_keys"]:
            raise UsageError(
                f"{path} does not hold all weights of {type(model).__name__}: {sorted(info['missing_keys'])[:3]} are "
                "missing and would be random. Load a complete causal language model."
            )
        return model
    except UsageError:
        raise
    except Exception as error:
        if "Unrecognized configuration class" in str(error):  # of which transformers goes on to list all others
            raise UsageError(
                f"{path} is a {config.model_type} model, which AutoModelForCausalLM of transformers does not open. "
                "Load a language model that reads text only; of a model with images, its text decoder."
            ) from error
        raise UsageError(
            f"cannot open the model {path!r}{not_here(path)}: {type(error).__name__}: {error}. Expected a folder with "
            "config.json and safetensors weights (as `save_pretrained` writes them), or a hub name reachable from here."
        ) from error


def load_tokenizer(path: str, chat_template_path: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, or of the base of an adapter folder that has none of its own."""
    source = resolve_source(path)
    own = source.adapter is not None and (Path(source.adapter) / "tokenizer_config.json").is_file()
    where = source.adapter if own else source.base
    if not own:
        refuse_missing(source.base)
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            f"cannot open the tokenizer of {where!r}{not_here(str(where))}: {type(error).__name__}: {error}."
        ) from error
    if chat_template_path:
        try:
            tokenizer.chat_template = Path(chat_template_path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read chat_template_path={chat_template_path!r}: {error}.") from error
    _refuse_tokens_without_rows(tokenizer, source.base)
    return tokenizer


def _refuse_tokens_without_rows(tokenizer: PreTrainedTokenizerBase, base: str) -> None:
    """Raise `UsageError` if EOS, or a token that the chat template writes, has an id beyond the base's embeddings.

    Such a token was added to the tokenizer without resizing the model. A pad token may be: it is never fed here.
    """
    rows = getattr(config_of(base).get_text_config(decoder=True), "vocab_size", None)
    template = str(tokenizer.chat_template or "")
    for index, token in tokenizer.added_tokens_decoder.items():
        fed = index == tokenizer.eos_token_id or token.content in template
        if rows is not None and index >= rows and fed:
            what = "EOS" if index == tokenizer.eos_token_id else "a token of the chat template"
            raise UsageError(
                f"{token.content!r}, {what}, has id {index} and the embeddings of {base!r} have {rows} rows. Resize "
                "them (model.resize_token_embeddings) and save the model, or use its own tokenizer."
            )


def context_of(path: str, *, generated: bool = False) -> int | None:
    """Context length in tokens of the model at `path` (or of an adapter's base), without reading its weights.

    generated: the part of it within which responses are sampled (see `generation_length`).
    """
    config = config_of(resolve_source(path).base)
    if not generated:
        return context_length(config)
    tell_of_rope(config)
    return generation_length(config)


def config_of(base: str, remedy: str = "") -> PreTrainedConfig:
    """The config of a model folder or hub name. Raises `UsageError`, which ends with `remedy`, where it is neither here
    nor reachable."""
    refuse_missing(base)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            f"cannot read the config of {base!r}{not_here(base)}: {type(error).__name__}: {str(error).rstrip('.')}. "
            f"{remedy}".rstrip()
        ) from error


def not_here(path: str) -> str:
    """What an error adds where `path` is no folder: it was taken for a hub name, which may not be what was meant."""
    return "" if Path(path).exists() else " (no such folder is here, so it was taken for a hub name; check the path)"


def refuse_missing(path: str) -> None:
    """A path that looks like a folder and is not there gets its own message, not a hub look-up's."""
    looks_local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    folder = Path(path)
    if (looks_local or folder.exists()) and not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise UsageError(
            f"model folder {path!r} {what}. Expected a folder written by `save_pretrained`; check the path "
            "(an earlier stage writes it to its output_dir)."
        )
    if folder.is_dir():
        read_object(folder / "config.json", "Copy the model folder afresh.")
