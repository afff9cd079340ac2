"""The parts of a Llama-like decoder layer between its linear layers, through the kernel library on a CPU and on CUDA.

`fuse_blocks` replaces the forward of RMS norms, feed-forward blocks and attention of the families named below while a
`SharedModel` runs them. Every other module, every module on another kind of device, and a call of the model by itself
(which loading compares with) keeps the forward of transformers. `join_weights` lays q, k, v and gate, up of these
blocks side by side in memory, so that a decode step on CUDA has two products for the five.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralAttention, MistralMLP, MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2MLP, Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP, Qwen3RMSNorm

from rlhf_fast.model.attention import DecodeStep, PackedSequences
from rlhf_fast.model.lora import LoRALinear, Routing, project
from rlhf_kernels import rms_norm, rotary, swiglu

NORMS = (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm)
FEED_FORWARDS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)
ATTENTIONS = (LlamaAttention, MistralAttention, Qwen2Attention, Qwen3Attention)
GROUPS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(ATTENTIONS, ("q_proj", "k_proj", "v_proj")),
    **dict.fromkeys(FEED_FORWARDS, ("gate_proj", "up_proj")),
}
"""Layers of a block that read the same states: `project` is asked for all of a group together."""

Plain = Callable[..., Any]  # the forward of transformers


def fuse_blocks(model: nn.Module, routing: Routing) -> None:
    """Replace the forwards of `model`, in place, where this module serves them; harmless to repeat."""
    for module in model.modules():
        fused = _fused_forward(module, routing)
        if fused is not None:
            vars(module).pop("forward", None)  # a copy of a model comes with the forward of the original
            module.forward = partial(_forward, routing, fused, module, module.forward)  # type: ignore[method-assign]


def is_served(model: nn.Module) -> bool:
    """Whether the attention of `model` is one that this module serves."""
    return any(type(module) in ATTENTIONS for module in model.modules())


def _forward(routing: Routing, fused: Plain, module: Any, plain: Plain, hidden_states: Tensor, **kwargs: Any) -> Any:
    served = routing.current is not None and (hidden_states.is_cpu or hidden_states.is_cuda)
    return (partial(fused, module) if served else plain)(hidden_states, **kwargs)


def _fused_forward(module: nn.Module, routing: Routing) -> Callable[..., Any] | None:
    """By exact class: a subclass may compute something else."""
    if type(module) in NORMS:
        return _norm
    if type(module) in FEED_FORWARDS and isinstance(module.act_fn, (nn.SiLU, SiLUActivation)):
        return partial(_feed_forward, routing)
    return partial(_attention, routing) if type(module) in ATTENTIONS else None


def join_weights(model: nn.Module, on: str = "cuda") -> None:
    """Lay the frozen weights of q, k and v below one another in memory, and those of gate and up, and their biases; in
    place, and harmless to repeat.

    The parameters stay the same objects with the same values, now views of one tensor (sum of rows, K). At the peak one
    group's weights are there twice. on: the kind of device whose weights are joined; on a CPU they are a mapped file,
    of which this would be a copy, and decoding has its own (`packed_decoder`). Left alone: what is trained, as saving
    clones whatever shares memory; what is part of a larger tensor, which would stay; other layers than `nn.Linear`.
    """
    for module in model.modules():
        linears: list[Any] = [_unwrapped(getattr(module, name)) for name in GROUPS.get(type(module), ())]
        if linears and all(type(linear) is nn.Linear for linear in linears):
            _join([linear.weight for linear in linears], on)
            _join([linear.bias for linear in linears], on)


def _unwrapped(module: Any) -> nn.Module:
    """The linear layer inside one with adapters, ours or PEFT's."""
    return module.base if isinstance(module, LoRALinear) else getattr(module, "base_layer", module)


def _join(parameters: list[nn.Parameter | None], on: str) -> None:
    found = [p for p in parameters if p is not None and p.device.type == on and not p.requires_grad]
    whole = [p.data for p in found if p.untyped_storage().nbytes() == p.nbytes]
    if len(whole) < len(parameters) or len({part.dtype for part in whole}) > 1:
        return
    parts = torch.cat(whole).split([len(part) for part in whole])
    del whole
    for parameter, part in zip(found, parts, strict=True):
        parameter.data = part
    if on == "cuda":
        torch.cuda.empty_cache()  # it keeps what was freed, and the next group fits in none of that


def _norm(module: Any, hidden: Tensor) -> Tensor:
    return rms_norm(hidden, module.weight, eps=module.variance_epsilon)


def _feed_forward(routing: Routing, module: Any, hidden: Tensor) -> Tensor:
    return module.down_proj(swiglu(*project([module.gate_proj, module.up_proj], hidden, routing)))


def _attention(
    routing: Routing,
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
        for projected in project([module.q_proj, module.k_proj, module.v_proj], hidden, routing)
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
