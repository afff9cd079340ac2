"""The parts of a Llama-like decoder layer between its linear layers, through the kernel library on a CPU and on CUDA.

`fuse_blocks` replaces the forward of RMS norms, feed-forward blocks and attention of the families named below while a
`SharedModel` runs them. Every other module, every module on another kind of device, and a call of the model by itself
(which loading compares with) keeps the forward of transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

from rlhf_fast.model.attention import DecodeStep, PackedSequences
from rlhf_fast.model.lora import Routing, project
from rlhf_kernels import rms_norm, rotary, swiglu

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
FEED_FORWARDS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)
ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)

Plain = Callable[..., Any]  # the forward of transformers


def fuse_blocks(model: nn.Module, routing: Routing) -> None:
    """Replace the forwards of `model`, in place, where this module serves them; harmless to repeat."""
    for module in model.modules():
        fused = _fused_forward(module)
        if fused is not None:
            vars(module).pop("forward", None)  # a copy of a model comes with the forward of the original
            module.forward = partial(_forward, routing, fused, module, module.forward)  # type: ignore[method-assign]


def is_served(model: nn.Module) -> bool:
    """Whether the attention of `model` is one that this module serves."""
    return any(type(module) in ATTENTIONS for module in model.modules())


def _forward(routing: Routing, fused: Plain, module: Any, plain: Plain, hidden_states: Tensor, **kwargs: Any) -> Any:
    served = routing.current is not None and (hidden_states.is_cpu or hidden_states.is_cuda)
    return (partial(fused, module) if served else plain)(hidden_states, **kwargs)


def _fused_forward(module: nn.Module) -> Callable[..., Any] | None:
    """By exact class: a subclass may compute something else."""
    if type(module) in NORMS:
        return _norm
    if type(module) in FEED_FORWARDS and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)):
        return _feed_forward
    return _attention if type(module) in ATTENTIONS else None


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, module.weight, eps=module.variance_epsilon)


def _feed_forward(module: Any, hidden: Tensor) -> Tensor:
    return module.down_proj(swiglu(*project([module.gate_proj, module.up_proj], hidden)))


def _attention(
    module: Any,
    hidden: Tensor,
    *,
    position_embeddings: tuple[Tensor, Tensor],
    sequences: PackedSequences | DecodeStep,
    **unused: object,
) -> tuple[Tensor, None]:
    """hidden (B, T, H) -> (B, T, H)"""
    batch, tokens = hidden.shape[:2]
    q, k, v = (
        projected.view(batch * tokens, -1, module.head_dim)
        for projected in project([module.q_proj, module.k_proj, module.v_proj], hidden)
    )
    if hasattr(module, "q_norm"):  # Qwen3
        q, k = module.q_norm(q), module.k_norm(k)
    half = module.head_dim // 2  # transformers gives the angles of both halves, which are equal
    cos, sin = (x.expand(batch, -1, -1).reshape(batch * tokens, -1)[:, :half] for x in position_embeddings)
    q, k = rotary(q, k, cos, sin)
    q, k, v = (x.view(batch, tokens, -1, module.head_dim).transpose(1, 2) for x in (q, k, v))
    out = sequences.attend(module.layer_idx, q, k, v, module.scaling, _window(module), None)
    return module.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1)), None


def _window(module: Any) -> int | None:
    """Llama has none, whatever its config says; Mistral's is its config's; Qwen's may differ between layers."""
    if isinstance(module, LlamaAttention):
        return None
    return getattr(module.config if isinstance(module, MistralAttention) else module, "sliding_window", None)
