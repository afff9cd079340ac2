"""One decode step of a Llama-like model in C++: every layer for one new token of each sequence, in a single call.

The weights are packed for products of few rows when a `Decoder` is made; a change of the weights does not reach the
copy. An adapter is applied beside its layer, never added into it. bf16 weights keep the residual stream in float32, so
that hidden states are nearer to the exact ones than those of a step that rounds between layers, not equal to them.

Here: the arithmetic of the layers over a cache that the caller owns. Not here: which models have this form, and which
of their tensors are which.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_kernels import extension
from rlhf_kernels.extension import address, native
from rlhf_kernels.op import environment_refusal, processor_refusal, runs_named

__all__ = ["Decoder", "DecoderLayer", "DecoderLinear"]


class DecoderLinear(NamedTuple):
    """x W^T + b + scale (x A^T) B^T; A and B None: no adapter. All is copied, what is not the weight in float32."""

    weight: Tensor  # (N, K) of the decoder's dtype
    bias: Tensor | None = None  # (N,)
    lora_a: Tensor | None = None  # (R, K)
    lora_b: Tensor | None = None  # (N, R)
    scale: float = 0.0


class DecoderLayer(NamedTuple):
    """Pre-norm attention and SwiGLU. q and k are normed per head where the weights are given; window None: no limit."""

    query: DecoderLinear
    key: DecoderLinear
    value: DecoderLinear
    output: DecoderLinear
    gate: DecoderLinear
    up: DecoderLinear
    down: DecoderLinear
    attention_norm: Tensor  # (hidden_size,)
    mlp_norm: Tensor  # (hidden_size,)
    query_norm: Tensor | None = None  # (head_dim,)
    key_norm: Tensor | None = None  # (head_dim,)
    window: int | None = None


class Decoder:
    """A packed copy of the layers, to call once for each token. `nbytes` is what the copy takes."""

    def __init__(
        self,
        layers: Iterable[DecoderLayer],
        *,
        embedding: Tensor,  # (V, hidden_size) bfloat16 or float32, on the CPU: the dtype of the weights and the cache
        final_norm: Tensor,  # (hidden_size,)
        cos: Tensor,  # (length, head_dim) of each position
        sin: Tensor,  # as cos
        heads: int,
        kv_heads: int,
        eps: float,
        attention_scale: float,
    ) -> None:
        """Raises ValueError where the dtype, the device or the processor is not served: `refusal` gives the reason."""
        reason = self.refusal(embedding.dtype, embedding.device)
        if not runs_named(reason):
            raise ValueError(f"no decoder can be made: {reason}")
        layers = list(layers)
        self.embedding = embedding.detach().contiguous()
        self.cos, self.sin = _floats(cos), _floats(sin)
        norm = _floats(final_norm)
        self._native = native.Decoder(
            hidden_size=embedding.shape[1],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=cos.shape[1],
            intermediate_size=layers[0].gate.weight.shape[0],
            eps=eps,
            attention_scale=attention_scale,
            final_norm=norm.data_ptr(),
            bf16=embedding.dtype == torch.bfloat16,
            level=extension.LEVEL,
        )
        for layer in layers:
            self._add(layer)
        self._layers, self._kv_heads = len(layers), kv_heads
        self.nbytes = self._native.nbytes

    @staticmethod
    def built() -> bool:
        """Whether there are C++ kernels at all; where there are none, the operations have said so."""
        return extension.MISSING is None

    @staticmethod
    def refusal(dtype: torch.dtype, device: torch.device) -> str | None:
        """Why there is no decoder for weights of this dtype and device, or why it would be no faster (a `NoLoss`,
        with which one can be made all the same); None: there is.

        RLHF_FAST_BACKEND turns it off by naming another backend than "native".
        """
        if (reason := extension.MISSING or environment_refusal()) is not None:
            return reason
        if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float32):
            return f"it is in {dtype} on {device}, and the packed decoder takes bfloat16 or float32 on the CPU"
        return processor_refusal()

    def __call__(
        self, tokens: Tensor, lengths: Tensor, longest: int, keys: Sequence[Tensor], values: Sequence[Tensor]
    ) -> Tensor:
        """Hidden states (B, hidden_size) after the final norm, of one new token (B,) int64 of each of B sequences.

        keys and values, one for each layer, are (B or more, kv_heads, L, head_dim) and contiguous; row b holds
        lengths[b] (int64) tokens, and the new one's are written behind them in place. `longest` is the largest of
        lengths. Raises ValueError where it has no angle, and where tensors have another form than this.
        """
        if longest >= len(self.cos):
            raise ValueError(f"a sequence has {longest} tokens, and the decoder was made for {len(self.cos)}")
        self._check(tokens, lengths, (*keys, *values))
        hidden = self.embedding.new_empty(len(tokens), self.embedding.shape[1])
        self._native.step(
            rows=len(tokens),
            tokens=tokens.data_ptr(),
            lengths=lengths.data_ptr(),
            embedding=self.embedding.data_ptr(),
            cos=self.cos.data_ptr(),
            sin=self.sin.data_ptr(),
            keys=[x.data_ptr() for x in keys],
            values=[x.data_ptr() for x in values],
            length=keys[0].shape[2],
            hidden=hidden.data_ptr(),
            threads=torch.get_num_threads(),
        )
        return hidden

    def _check(self, tokens: Tensor, lengths: Tensor, cache: tuple[Tensor, ...]) -> None:
        rows, dtype = len(tokens), self.embedding.dtype
        for name, column in (("tokens", tokens), ("lengths", lengths)):
            if column.dtype != torch.int64 or column.shape != (rows,) or not column.is_contiguous():
                raise ValueError(f"{name} is {column.dtype} {tuple(column.shape)}, expected int64 of shape ({rows},)")
        if len(cache) != 2 * self._layers:
            raise ValueError(f"got {len(cache)} tensors of keys and values, expected {2 * self._layers}, two a layer")
        shape = cache[0].shape
        fits = len(shape) == 4 and shape[0] >= rows and (shape[1], shape[3]) == (self._kv_heads, self.cos.shape[1])
        if not fits or any(x.shape != shape or x.dtype != dtype or not x.is_contiguous() for x in cache):
            raise ValueError(
                f"keys and values are {cache[0].dtype} of shape {tuple(shape)}, expected contiguous tensors of {dtype} "
                f"and one shape ({rows} or more, {self._kv_heads}, L, {self.cos.shape[1]})"
            )

    def _add(self, layer: DecoderLayer) -> None:
        kept: list[Tensor] = []  # alive until the copy is made

        def linear(*sources: DecoderLinear) -> list[native.LinearSource]:
            return [_source(source, self.embedding.dtype, kept) for source in sources]

        def norm(weight: Tensor | None) -> int:
            if weight is None:
                return 0
            kept.append(_floats(weight))
            return kept[-1].data_ptr()

        self._native.add_layer(
            qkv=linear(layer.query, layer.key, layer.value),
            o=linear(layer.output),
            gate_up=linear(layer.gate, layer.up),
            down=linear(layer.down),
            attention_norm=norm(layer.attention_norm),
            mlp_norm=norm(layer.mlp_norm),
            q_norm=norm(layer.query_norm),
            k_norm=norm(layer.key_norm),
            window=layer.window or 0,
        )


def _source(linear: DecoderLinear, dtype: torch.dtype, kept: list[Tensor]) -> native.LinearSource:
    """The layer and its adapter by address; what has to stay alive is added to `kept`."""
    weight = linear.weight.detach()
    if weight.dtype != dtype or weight.dim() != 2 or weight.stride(1) != 1:
        raise ValueError(
            f"a weight is {weight.dtype} of shape {tuple(weight.shape)} and strides {weight.stride()}, expected (N, K) "
            f"in {dtype} with contiguous rows"
        )
    bias, a, b = (None if x is None else _floats(x) for x in (linear.bias, linear.lora_a, linear.lora_b))
    kept += [x for x in (weight, bias, a, b) if x is not None]
    return native.LinearSource(
        weight=weight.data_ptr(),
        outputs=weight.shape[0],
        inputs=weight.shape[1],
        stride=weight.stride(0),
        bias=address(bias),
        a=address(a),
        b=address(b),
        rank=0 if a is None else a.shape[0],
        scale=linear.scale,
    )


def _floats(x: Tensor) -> Tensor:
    return x.detach().float().contiguous()
