"""The decode step of a model by `rlhf_kernels.Decoder`, with weights packed for products of few rows.

Served: Llama, Mistral, Qwen2 and Qwen3 (so SmolLM2 too) in bf16 or fp32 on the CPU. The packed copy holds the base and
one adapter as they are when it is made: it belongs to one rollout, and an update of the weights does not reach it. The
adapter is applied beside the weights, never added into them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor

from rlhf_fast.model.attention import DecodeStep
from rlhf_fast.model.lora import LoRALinear
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.phases import keeps
from rlhf_kernels import Decoder, DecoderLayer, DecoderLinear

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
FIXED_ROPE = ("default", "linear", "llama3", "yarn")  # angles that do not depend on the length of the sequences

Decode = Callable[[Tensor, DecodeStep], Tensor]


def decoder(model: SharedModel, adapter: str | None, length: int) -> Decode:
    """What gives hidden states (B, H) for tokens (B,) of a `DecodeStep` for the weights as they are now.

    A packed copy where the model is served, else `model.decode`, which is logged once with the reason. `length` is that
    of the cache.
    """
    reason = unserved(model)
    if reason is None:
        return PackedDecoder(model, adapter, length)
    if model.device.type == "cpu" and Decoder.built():  # else it is said already, for all of the kernels
        _log_once(type(model.base).__name__, reason)
    return lambda tokens, step: model.decode(tokens, step, adapter)


def unserved(model: SharedModel) -> str | None:
    """Why the packed decoder cannot serve this model, or None."""
    if (reason := Decoder.refusal(model.dtype, model.device)) is not None:
        return reason
    config = model.base.config
    if config.model_type not in ARCHITECTURES:
        return f"its architecture is {config.model_type}, and the packed decoder takes {', '.join(ARCHITECTURES)}"
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}, and the packed decoder takes silu"
    rope = config.rope_parameters
    if rope.get("rope_type") not in FIXED_ROPE or rope.get("partial_rotary_factor", 1.0) != 1.0:
        return f"its rotary embedding is {rope}, and the packed decoder takes {', '.join(FIXED_ROPE)} over whole heads"
    return None


class PackedDecoder:
    """A packed copy of a served model with `adapter` (None: the bare base) for caches of `length` tokens."""

    def __init__(self, model: SharedModel, adapter: str | None, length: int) -> None:
        config, backbone = model.base.config, cast(Any, model.backbone)
        cos, sin = backbone.rotary_emb(torch.empty(0, dtype=model.dtype), torch.arange(length)[None])
        self.decoder = Decoder(
            (_layer(layer, adapter) for layer in backbone.layers),
            embedding=backbone.embed_tokens.weight,
            final_norm=backbone.norm.weight,
            cos=cos[0],
            sin=sin[0],
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            eps=config.rms_norm_eps,
            attention_scale=backbone.layers[0].self_attn.scaling,
        )
        keeps("packed weights", self.decoder.nbytes, self)

    def __call__(self, tokens: Tensor, step: DecodeStep) -> Tensor:
        """Hidden states (B, H) of one new token (B,) int64 for each live sequence; the cache is written in place."""
        cache, layers = step.cache, range(len(step.cache.keys))
        keys, values = ([of[layer] for layer in layers] for of in (cache.keys, cache.values))
        return self.decoder(tokens, step.lengths, step.longest, keys, values)


def _layer(layer: Any, adapter: str | None) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return DecoderLayer(
        query=_linear(attention.q_proj, adapter),
        key=_linear(attention.k_proj, adapter),
        value=_linear(attention.v_proj, adapter),
        output=_linear(attention.o_proj, adapter),
        gate=_linear(mlp.gate_proj, adapter),
        up=_linear(mlp.up_proj, adapter),
        down=_linear(mlp.down_proj, adapter),
        attention_norm=layer.input_layernorm.weight,
        mlp_norm=layer.post_attention_layernorm.weight,
        query_norm=attention.q_norm.weight if hasattr(attention, "q_norm") else None,
        key_norm=attention.k_norm.weight if hasattr(attention, "k_norm") else None,
        window=_window(attention),
    )


def _linear(module: Any, adapter: str | None) -> DecoderLinear:
    if not isinstance(module, LoRALinear):
        return DecoderLinear(module.weight, module.bias)
    plain = DecoderLinear(module.base.weight, module.base.bias)
    if adapter not in module.scale:
        return plain
    return plain._replace(lora_a=module.lora_a[adapter], lora_b=module.lora_b[adapter], scale=module.scale[adapter])


def _window(attention: Any) -> int | None:
    """Tokens that a layer sees, None for all; Mistral states it for all layers at once."""
    window = getattr(attention, "sliding_window", None)
    if window is None and attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    return window


@cache
def _log_once(name: str, reason: str) -> None:
    logging.getLogger(__name__).warning("%s decodes through transformers, which is slower: %s", name, reason)
