"""One decode step of a Llama-like model in C++, with weights packed for products of few rows.

Served: Llama, Mistral, Qwen2 and Qwen3 (so SmolLM2 too) in bf16 or fp32 on the CPU. The packed copy holds the base and
one adapter as they are when it is made: it belongs to one rollout, and an update of the weights does not reach it. The
adapter is applied beside the weights, never added into them. bf16 models keep the residual stream in fp32 here, so
that hidden states are nearer to the exact ones than those of a step through transformers, not equal to them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_fast.model.attention import DecodeStep
from rlhf_fast.model.lora import LoRALinear
from rlhf_fast.model.shared import SharedModel
from rlhf_kernels.backends import native_refused
from rlhf_kernels.extension import LEVEL, MISSING, native

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
    if model.device.type == "cpu" and reason != MISSING:  # said already, for all of the kernels
        _log_once(type(model.base).__name__, reason)
    return lambda tokens, step: model.decode(tokens, step, adapter)


def unserved(model: SharedModel) -> str | None:
    """Why the packed decoder cannot serve this model, or None."""
    config = model.base.config
    if (reason := MISSING or native_refused()) is not None:
        return reason
    if LEVEL == "portable":
        return "this processor has neither AVX2 nor AVX-512 with bf16"
    if model.device.type != "cpu" or model.dtype not in (torch.bfloat16, torch.float32):
        return f"it is in {model.dtype} on {model.device}, and the packed decoder takes bfloat16 or float32 on the CPU"
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

    def __init__(self, model: SharedModel, adapter: str | None, length: int, *, level: str = LEVEL) -> None:
        self.model, self.adapter = model, adapter
        backbone: Any = model.backbone
        self.embedding = backbone.embed_tokens.weight.detach().contiguous()
        self.cos, self.sin = _angles(backbone.rotary_emb, length, model.dtype)
        self.native = self._shape(backbone, level)
        for layer in backbone.layers:
            self._add(layer)

    def _shape(self, backbone: Any, level: str) -> native.Decoder:
        config, attention = self.model.base.config, backbone.layers[0].self_attn
        norm = _floats(backbone.norm.weight)
        return native.Decoder(
            hidden_size=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=attention.head_dim,
            intermediate_size=config.intermediate_size,
            eps=config.rms_norm_eps,
            attention_scale=attention.scaling,
            final_norm=norm.data_ptr(),
            bf16=self.model.dtype == torch.bfloat16,
            level=level,
        )

    def _add(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        kept: list[Tensor] = []  # alive until the copy is made

        def linear(*modules: nn.Module) -> list[native.LinearSource]:
            return [_linear(module, self.adapter, kept) for module in modules]

        def norm(module: Any) -> int:
            kept.append(_floats(module.weight))
            return kept[-1].data_ptr()

        self.native.add_layer(
            qkv=linear(attention.q_proj, attention.k_proj, attention.v_proj),
            o=linear(attention.o_proj),
            gate_up=linear(mlp.gate_proj, mlp.up_proj),
            down=linear(mlp.down_proj),
            attention_norm=norm(layer.input_layernorm),
            mlp_norm=norm(layer.post_attention_layernorm),
            q_norm=norm(attention.q_norm) if hasattr(attention, "q_norm") else 0,
            k_norm=norm(attention.k_norm) if hasattr(attention, "k_norm") else 0,
            window=_window(attention),
        )

    def __call__(self, tokens: Tensor, step: DecodeStep) -> Tensor:
        """Hidden states (B, H) of one new token (B,) int64 for each live sequence; the cache is written in place."""
        layers, cache = range(len(step.cache.keys)), step.cache
        hidden = self.embedding.new_empty(len(tokens), self.embedding.shape[1])
        if step.longest >= len(self.cos):
            raise ValueError(f"a sequence has {step.longest} tokens, and the decoder was made for {len(self.cos)}")
        self.native.step(
            rows=len(tokens),
            tokens=tokens.data_ptr(),
            lengths=step.lengths.data_ptr(),
            embedding=self.embedding.data_ptr(),
            cos=self.cos.data_ptr(),
            sin=self.sin.data_ptr(),
            keys=[cache.keys[layer].data_ptr() for layer in layers],
            values=[cache.values[layer].data_ptr() for layer in layers],
            length=cache.length,
            hidden=hidden.data_ptr(),
            threads=torch.get_num_threads(),
        )
        return hidden


def _linear(module: Any, adapter: str | None, kept: list[Tensor]) -> native.LinearSource:
    """The layer and its adapter by address; what had to be converted is added to `kept`."""
    base = module.base if isinstance(module, LoRALinear) else module
    weight = base.weight.detach()
    bias = None if base.bias is None else _floats(base.bias)
    adapted = isinstance(module, LoRALinear) and adapter in module.scale
    a, b = (_floats(module.lora_a[adapter]), _floats(module.lora_b[adapter])) if adapted else (None, None)
    kept += [x for x in (weight, bias, a, b) if x is not None]
    return native.LinearSource(
        weight=weight.data_ptr(),
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        stride=weight.stride(0),
        bias=0 if bias is None else bias.data_ptr(),
        a=0 if a is None else a.data_ptr(),
        b=0 if b is None else b.data_ptr(),
        rank=0 if a is None else a.shape[0],
        scale=module.scale[adapter] if adapted else 0.0,
    )


def _floats(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()


def _window(attention: Any) -> int:
    """Tokens that a layer sees, 0 for all; Mistral states it for all layers at once."""
    window = getattr(attention, "sliding_window", None)
    if window is None and attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    return window or 0


def _angles(rotary: Any, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin (length, head_dim) f32 of each position, rounded to `dtype` as the model rounds them."""
    cos, sin = rotary(torch.empty(0, dtype=dtype), torch.arange(length)[None])
    return _floats(cos[0]), _floats(sin[0])


@cache
def _log_once(name: str, reason: str) -> None:
    logging.getLogger(__name__).warning("%s decodes through transformers, which is slower: %s", name, reason)
