"""Opening a base model and its tokenizer from a folder or a hub name, with errors that name the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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
from rlhf_fast.model.attention import ATTENTION, KVCache, PackedSequences
from rlhf_fast.model.sharding import shard_base
from rlhf_fast.model.shared import SharedModel, context_length
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
    rows = getattr(_config_of(base).get_text_config(), "vocab_size", None)
    template = str(tokenizer.chat_template or "")
    for index, token in tokenizer.added_tokens_decoder.items():
        fed = index == tokenizer.eos_token_id or token.content in template
        if rows is not None and index >= rows and fed:
            what = "EOS" if index == tokenizer.eos_token_id else "a token of the chat template"
            raise UsageError(
                f"{token.content!r}, {what}, has id {index} and the embeddings of {base!r} have {rows} rows. Resize "
                "them (model.resize_token_embeddings) and save the model, or use its own tokenizer."
            )


def context_of(path: str) -> int | None:
    """Context length in tokens of the model at `path` (or of an adapter's base), without reading its weights."""
    return context_length(_config_of(resolve_source(path).base))


def _config_of(base: str) -> PreTrainedConfig:
    refuse_missing(base)
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            f"cannot read the config of {base!r}{not_here(base)}: {type(error).__name__}: {error}."
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


@torch.no_grad()
def check_architecture(shared: SharedModel) -> None:
    """Raise `UsageError` unless packed hidden states and our reading of the head reproduce the model's own logits.

    Catches, on a few tokens, an architecture whose attention or head does something that is not served here. Every
    layer also has to fill the `KVCache`: one that keeps its own state would be right here and wrong in a rollout.
    """
    name, layers = type(shared.base).__name__, shared.base.config.get_text_config().num_hidden_layers
    if shared.backbone is shared.base:
        raise UsageError(f"{name} is not supported: its layers cannot be run without its language-model head.")
    tokens = torch.arange(1, 7, device=shared.device) * (shared.lm_head[0].shape[0] // 8)  # no special ones
    cache = KVCache(2, 6)
    hidden = shared.prefill(torch.cat([tokens, tokens]), PackedSequences([0, 6, 12], cache), None)[6:]
    if len(cache.keys) != layers:
        raise UsageError(
            f"{name} is not supported: {len(cache.keys)} of its {layers} layers use transformers' AttentionInterface, "
            "expected all of them. Use a decoder such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2."
        )
    expected = _own_logits(shared, tokens)
    tolerance = 0.05 if shared.dtype != torch.float32 else 1e-3
    error = (_logits(shared, hidden) - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
    if not error <= tolerance:
        raise UsageError(
            f"{name} is not supported: packed logits differ from its own by {error:.3g} (relative, allowed "
            f"{tolerance}). It may use an attention variant or a logit scale that is not served here."
        )


def _logits(shared: SharedModel, hidden: torch.Tensor) -> torch.Tensor:
    """(T, V) f32 of hidden (T, H), as `rlhf_kernels` reads the head."""
    weight, bias = shared.lm_head
    logits = hidden.float() @ weight.float().t()
    logits = logits if bias is None else logits + bias.float()
    return logits if shared.softcap is None else torch.tanh(logits / shared.softcap) * shared.softcap


def _own_logits(shared: SharedModel, tokens: torch.Tensor) -> torch.Tensor:
    """(T, V) f32 of tokens (T,) through the model's own attention and head."""
    with own_attention(shared):
        return shared.base(input_ids=tokens[None], use_cache=False).logits[0].float()


@contextmanager
def own_attention(shared: SharedModel) -> Iterator[None]:
    """The base with an attention of transformers inside, for a check of ours.

    SDPA where the model has it: the same products in the same order as ours; in bfloat16 another order differs a lot.
    """
    capped = getattr(shared.base.config.get_text_config(), "attn_logit_softcapping", None) is not None
    shared.base.set_attn_implementation("sdpa" if shared.base._supports_sdpa and not capped else "eager")
    try:
        yield
    finally:
        shared.base.set_attn_implementation(ATTENTION)
