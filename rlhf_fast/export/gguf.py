"""A decoder of the Llama family as a GGUF file, which llama.cpp opens: its sizes, its weights by name, and the file.
Needs the package `gguf`.

llama.cpp rotates the queries and keys of its `llama` in pairs of neighbours, transformers in pairs half a head apart.
So the rows of their weights are put in another order; `qwen2` and `qwen3` keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from rlhf_fast.export.gguf_tokenizer import tokenizer_metadata
from rlhf_fast.runtime.errors import UsageError

_FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_ADD = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}


def gguf_name(name: str, kind: str) -> str:
    return f"{name}-{kind.upper()}.gguf"


def gguf_metadata(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> dict[str, Any]:
    """Everything of the file but its weights. Raises `UsageError` where the package, or a place in GGUF, is missing."""
    try:
        import gguf
    except ImportError as error:
        raise UsageError('writing GGUF needs one more package; `pip install "rlhf-fast[gguf]"`.') from error
    general = {"general.type": "model", "general.name": name, "general.quantization_version": gguf.GGML_QUANT_VERSION}
    return general | model_metadata(config) | tokenizer_metadata(tokenizer, config.vocab_size)


def write_gguf(path: Path, model: PreTrainedModel, metadata: dict[str, Any], kind: str) -> None:
    """`model` (f32, on the CPU) and the result of `gguf_metadata`, at `path`; one tensor at a time is held in `kind`.

    Norms and biases stay f32. q8_0 has blocks of 32 weights with one f16 scale; a matrix whose rows cannot be cut into
    blocks is stored as f16, as by llama.cpp. Raises `UsageError` for a weight that f16 cannot hold, or without a place.
    """
    import gguf

    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":  # the writer has put it first
            getattr(writer, _ADD[type(value)])(key, value)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    for name, tensor in gguf_tensors(model):
        stored = _stored(tensor, kind)
        block, size = gguf.GGML_QUANT_SIZES[stored]
        writer.add_tensor_info(name, tensor.shape, tensor.numpy().dtype, tensor.numel() // block * size, stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in gguf_tensors(model):
            stored = _stored(tensor, kind)
            if stored.name == "F16" and tensor.abs().max() > torch.finfo(torch.float16).max:
                raise UsageError(f"{name} has weights beyond the range of float16. Export with gguf='bf16' or 'f32'.")
            writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), stored))
    finally:
        writer.close()


def _stored(tensor: torch.Tensor, kind: str) -> Any:
    """The `gguf.GGMLQuantizationType` of one weight."""
    import gguf

    if tensor.dim() == 1:
        kind = "f32"
    elif tensor.shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]][0]:
        kind = "f16"
    return gguf.GGMLQuantizationType[kind.upper()]


ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""`model_type` of transformers: `general.architecture` of GGUF."""


def model_metadata(config: PreTrainedConfig) -> dict[str, Any]:
    """Keys and values of the architecture. Raises `UsageError` for what llama.cpp would compute differently.

    It has no sliding window for these architectures: of a model with one, the context is the window, within which
    attention is full.
    """
    arch = _architecture(config)
    _refuse_parts(config, arch)
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    head = head_size(config)
    sizes = {
        "vocab_size": config.vocab_size, "context_length": min(config.max_position_embeddings, window),
        "block_count": config.num_hidden_layers, "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head, "attention.value_length": head, "rope.dimension_count": head,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }  # fmt: skip
    if config.rope_parameters["rope_type"] == "linear":
        sizes |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_parameters["factor"])}
    return {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in sizes.items()}


def head_size(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def gguf_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """GGUF name and values of each weight, a tied one once; views of the model's own where their order stays."""
    import gguf

    config, arch = model.config, _architecture(model.config)
    (number,) = (number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads} if arch == "llama" else {}
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _rope_factors(config)
    for own, parameter in model.named_parameters():
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise UsageError(f"the weight {own!r} has no name in GGUF's {arch!r}. Export with gguf='none'.")
        part = name.split(".")[-2]
        yield name, _neighbours(parameter.detach(), heads[part]) if part in heads else parameter.detach()


def _neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows (or biases) i and i + D / 2 of each head of D side by side."""
    return weight.view(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _rope_factors(config: PreTrainedConfig) -> torch.Tensor:
    """(D / 2) f32: what llama.cpp divides the frequencies of `rope.freq_base` by, to have those of the model."""
    head = head_size(config)
    plain = config.rope_parameters["rope_theta"] ** -(torch.arange(0, head, 2).float() / head)
    return plain / ROPE_INIT_FUNCTIONS["llama3"](config)[0]


def _architecture(config: PreTrainedConfig) -> str:
    arch = ARCHITECTURES.get(config.model_type)
    if arch is None:
        raise UsageError(
            f"a model of the type {config.model_type!r} cannot be written as GGUF. Expected one of "
            f"{', '.join(ARCHITECTURES)}. Export with gguf='none'."
        )
    return arch


def _refuse_parts(config: PreTrainedConfig, arch: str) -> None:
    rope = config.rope_parameters
    known = ["default", "linear", *(["llama3"] if arch == "llama" else [])]
    wrong = {
        f"hidden_act={config.hidden_act!r} (expected 'silu')": config.hidden_act != "silu",
        f"rope_type={rope['rope_type']!r} (expected {', '.join(known)})": rope["rope_type"] not in known,
        f"partial_rotary_factor={rope.get('partial_rotary_factor')} (expected 1)": rope.get("partial_rotary_factor")
        not in (None, 1),
        "attention_bias=True (expected False)": arch == "qwen3" and config.attention_bias,
    }
    found = [text for text, here in wrong.items() if here]
    if found:
        raise UsageError(f"GGUF's {arch!r} has no place for the model's {found[0]}. Export with gguf='none'.")
