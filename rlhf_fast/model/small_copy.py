"""A small random model of the kind of a given one: its config with every size and every threshold scaled down.

A window, a chunk or a rotary embedding that changes with the length begins to matter at thousands of tokens, where a
forward through the real model takes long. The small copy keeps what decides how a forward works (the class, one layer
of each kind, how heads are grouped, every switch) and meets each threshold within `LONGEST` tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

THRESHOLD = 6  # tokens: the windows, chunks and original contexts of a small copy
LONGEST = 19
SPECIAL, VOCABULARY = 16, 128  # the ids of special tokens are below SPECIAL

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "swa_num_attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "num_global_key_value_heads", "swa_num_key_value_heads")
_SIZES = {
    128: ("vocab_size", "vocab_size_per_layer_input", "mamba_d_ssm"),
    64: ("hidden_size", "n_embd", "d_model", "dim", "word_embed_proj_dim"),
    48: (
        "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "intermediate_size_mlp",
        "dense_intermediate_size",
    ),
    32: (
        "moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size", "v_head_dim",
        "moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "kv_lora_rank", "q_lora_rank",
        "global_head_dim",
    ),
    24: ("qk_head_dim", "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
    16: (
        "head_dim", "qk_nope_head_dim", "swa_head_dim", "attention_head_dim", "kv_channels", "index_head_dim",
        "hidden_size_per_layer_input", "query_pre_attn_scalar", "mamba_d_head",
    ),
    8: ("qk_rope_head_dim", "rotary_dim", "laurel_rank", "mamba_n_heads"),
    4: (*_HEADS, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "index_n_heads"),
}  # fmt: skip
_AT_MOST = {
    2: (
        "num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k", "n_group",
        "n_shared_experts", "num_shared_experts", "moe_num_shared_experts",
    ),
    1: ("topk_group",),
}  # fmt: skip
_EXACT = {name: size for size, names in _SIZES.items() for name in names}
_MOST = {name: size for size, names in _AT_MOST.items() for name in names}
_THRESHOLDS = re.compile(
    r"original_max_position_embeddings|window|window_size|sliding_window|sliding_window_size|attention_window_size"
    r"|.*chunk_size|.*floor_scale|.*_floor|rel_extent|index_topk|local_attention"
)
_FIRST = ("first_k_dense_replace", "num_dense_layers")  # so many layers from the first on are of a kind of their own
_LAST = ("num_kv_shared_layers",)  # so many up to the last
_CHOSEN = re.compile(r"moe_layers|mlp_only_layers|.*_idxs|.*_indices|.*layer_ids|cross_attention_layers")  # by number


def small_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config of the same class for a small model. Raises what the class says of sizes that do not go together."""
    return type(config).from_dict(_small(config.to_dict()))


def stated_thresholds(config: PreTrainedConfig) -> list[str]:
    """Names of what in a config says at how many tokens a forward begins to work in another way."""

    def names(part: Mapping[str, Any]) -> Iterator[str]:
        for key, value in part.items():
            if isinstance(value, Mapping):
                yield from names(value)
            elif isinstance(value, int) and not isinstance(value, bool) and _THRESHOLDS.fullmatch(str(key)):
                yield f"{key}={value}"

    return list(names(config.to_dict()))


def small_model(model: PreTrainedModel) -> PreTrainedModel:
    """A small float32 causal language model, of the class of `model` where that is one, on the CPU whatever the device
    of `model`, with weights large enough to show a mistake. No generator of random numbers moves."""
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.default_generator.manual_seed(0)
        config = small_config(model.config)
        causal = model.get_output_embeddings() is not None
        small = type(model)(config) if causal else AutoModelForCausalLM.from_config(config)
        small = small.float().eval()
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return small


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says of a config that nobody will use."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _small(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config (as a dict) for a small model, with one layer of each kind."""
    count = next((config[name] for name in _LAYERS if isinstance(config.get(name), int)), 0)
    layers = _one_of_each_kind(config, count)
    small: dict[str, Any] = {}
    for key, value in config.items():
        if key in _LAYERS:
            small[key] = len(layers)
        elif key in _FIRST and value is not None:
            small[key] = sum(i < value for i in layers)
        elif key in _LAST and value is not None:
            small[key] = sum(i >= count - value for i in layers)
        elif key == "per_layer_config" and value:
            given = {int(i): part for i, part in value.items()}
            small[key] = {new: _overrides(given[old], config) for new, old in enumerate(layers) if old in given}
        elif isinstance(value, (list, tuple)) and _CHOSEN.fullmatch(key):
            small[key] = [new for new, old in enumerate(layers) if old in value]
        elif _is_per_layer(key, value, count):
            small[key] = [_scaled(key, value[i], config) for i in layers]
        else:
            small[key] = _scaled(key, value, config)
    return small


def _one_of_each_kind(config: Mapping[str, Any], count: int) -> list[int]:
    """The first layer of each kind by what the config says of its layers one by one, and at least two layers."""
    kinds: dict[str, int] = {}
    columns = [value for key, value in config.items() if _is_per_layer(key, value, count)]
    chosen = [value for key, value in config.items() if isinstance(value, (list, tuple)) and _CHOSEN.fullmatch(key)]
    overrides = {int(i): part for i, part in (config.get("per_layer_config") or {}).items()}
    for i in range(count):
        facts = [column[i] for column in columns] + [i in numbers for numbers in chosen] + [overrides.get(i)]
        facts += [i < config[name] for name in _FIRST if config.get(name) is not None]
        facts += [i >= count - config[name] for name in _LAST if config.get(name) is not None]
        kinds.setdefault(repr(facts), i)
    layers = set(kinds.values())
    return sorted(layers if len(layers) > 1 else layers | set(range(min(2, count))))


def _overrides(given: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What one layer has in place of the config's values, in the proportions of the given model."""
    small = {}
    for key, value in given.items():
        scaled = _scaled(key, value, {**config, **given})
        if key in _EXACT and value != config.get(key):
            scaled = scaled * value // config[key]
        small[key] = scaled
    return small


def _is_per_layer(key: str, value: Any, count: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == count > 1 and not _CHOSEN.fullmatch(key)


def _scaled(key: str, value: Any, config: Mapping[str, Any]) -> Any:
    """The value of `key` for a small model: smaller where it is a size or a threshold, else as it is."""
    if isinstance(value, Mapping):
        if key.endswith("_config"):
            return _small(value)
        return {name: _scaled(str(name), part, {**config, **value}) for name, part in value.items()}
    if key in ("long_factor", "short_factor", "mrope_section") and value:
        return _resized(key, value, int(_EXACT["head_dim"] * config.get("partial_rotary_factor", 1.0)) // 2)
    if key.endswith(("token_id", "token_index")) and isinstance(value, (list, tuple)):
        return [token % SPECIAL for token in value]
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        return value
    if key.endswith(("token_id", "token_index")):
        return value % SPECIAL
    if key in _KEY_HEADS:
        heads = next((config[name] for name in _HEADS if config.get(name)), 1)
        return max(1, _EXACT["num_attention_heads"] * value // heads)
    if key == "max_position_embeddings" and "'dynamic'" in repr(config.get("rope_parameters")):
        return THRESHOLD
    if key == "head_dim" and value == config.get("qk_rope_head_dim"):
        return _EXACT["qk_rope_head_dim"]
    return min(value, THRESHOLD) if _THRESHOLDS.fullmatch(key) else _EXACT.get(key, min(value, _MOST.get(key, value)))


def _resized(key: str, numbers: list[Any], size: int) -> list[Any]:
    """As many of the factors as angles; or sections, which add up to their number, in their proportions."""
    if key != "mrope_section":
        return [numbers[i * len(numbers) // size] for i in range(size)]
    ends = [size * sum(numbers[: i + 1]) // sum(numbers) for i in range(len(numbers))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
