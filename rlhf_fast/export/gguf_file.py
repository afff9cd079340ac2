"""A GGUF file, as llama.cpp opens it. Needs the package `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.export.gguf_model import gguf_tensors, model_metadata
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
