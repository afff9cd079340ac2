"""Attention over packed sequences, registered with transformers under the name `ATTENTION`.

A model that runs with this implementation sees no padding and no attention mask. It is told about the sequences
through one keyword argument that transformers hands down to every attention layer:

    PackedSequences   (1, T) tokens of several sequences side by side; each attends only to itself
    DecodeStep        (B, 1) one new token for each of B sequences whose keys and values lie in a `KVCache`
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedConfig

from rlhf_fast.runtime.phases import holds
from rlhf_kernels import decode_attention, packed_attention

ATTENTION = "rlhf_fast"


def has_softcap(config: PreTrainedConfig) -> bool:
    """Whether a model's attention caps its scores, as Gemma 2's does. Ours does; of transformers', "eager": in some
    versions SDPA leaves the cap out, and is the default."""
    return getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None) is not None


class KVCache:
    """Keys and values of up to `capacity` sequences of up to `length` tokens, a pair of tensors for each layer.

    Layer tensors are (capacity, kv_heads, length, head_dim), allocated when the layer first writes; values may have
    another head_dim than keys (multi-head latent attention). The sequences that
    are alive are always rows 0..B-1: `copy` fills the place of one that has finished, and shares a prompt.
    """

    def __init__(self, capacity: int, length: int) -> None:
        self.capacity, self.length = capacity, length
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def _layer(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.keys:
            for tensors, like in ((self.keys, key), (self.values, value)):
                tensors[layer] = like.new_zeros(self.capacity, like.shape[1], self.length, like.shape[3])
                holds("KV cache", [tensors[layer]])
        return self.keys[layer], self.values[layer]

    def write_prompt(self, layer: int, row: int, key: Tensor, value: Tensor) -> None:
        """Store key, value (1, kv_heads, P, head_dim) at positions 0..P-1 of `row`."""
        keys, values = self._layer(layer, key, value)
        keys[row, :, : key.shape[2]] = key[0]
        values[row, :, : key.shape[2]] = value[0]

    def append(self, layer: int, rows: Tensor, lengths: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store key, value (B, kv_heads, 1, head_dim) at position lengths[b] of row b; return rows 0..B-1 whole.

        rows (B,) int64 are 0 to B-1.
        """
        keys, values = self._layer(layer, key, value)
        keys[rows, :, lengths] = key[:, :, 0]
        values[rows, :, lengths] = value[:, :, 0]
        return keys[: len(lengths)], values[: len(lengths)]

    def copy(self, source: int, target: int, length: int) -> None:
        """Give row `target` the first `length` positions of row `source`."""
        for tensors in (self.keys, self.values):
            for tensor in tensors.values():
                tensor[target, :, :length] = tensor[source, :, :length]

    def nbytes(self) -> int:
        return sum(t.nbytes for tensors in (self.keys, self.values) for t in tensors.values())


@dataclass
class PackedSequences:
    """Offsets (B+1) of the sequences in the packed row; with a cache, row `first_row + b` receives sequence b."""

    cu_seqlens: list[int]
    cache: KVCache | None = None
    first_row: int = 0

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """q (1, heads, T, D) -> (1, heads, T, D): each sequence by itself."""
        if self.cache is not None:
            self._write_prompts(layer, k, v)
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (q, k, v))  # (T, heads, D); no copy backward, as of x[0]
        out = packed_attention(q, k, v, self.cu_seqlens, scale=scale, window=window, softcap=softcap)
        return out.transpose(0, 1)[None]

    def _write_prompts(self, layer: int, k: Tensor, v: Tensor) -> None:
        assert self.cache is not None
        for b, (start, end) in enumerate(pairwise(self.cu_seqlens)):
            if start < end:
                self.cache.write_prompt(layer, self.first_row + b, k[:, :, start:end], v[:, :, start:end])


@dataclass
class DecodeStep:
    """One token for each of B sequences; lengths (B,) int64 counts the tokens that each has in the cache so far."""

    cache: KVCache
    lengths: Tensor
    longest: int

    @cached_property
    def rows(self) -> Tensor:
        """(B,) int64: 0 to B-1."""
        return torch.arange(len(self.lengths), device=self.lengths.device)

    @cached_property
    def counts(self) -> Tensor:
        """(B,) int64: the tokens in the cache with the new one."""
        return self.lengths + 1

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """q (B, heads, 1, D) -> (B, heads, 1, D): each row to what its sequence has in the cache, the new token too."""
        keys, values = self.cache.append(layer, self.rows, self.lengths, k, v)
        out = decode_attention(
            q[:, :, 0], keys, values, self.counts,
            scale=scale, window=window, softcap=softcap, longest=self.longest + 1,
        )  # fmt: skip
        return out[:, :, None]


def _attention_layer(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sequences: PackedSequences | DecodeStep | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; query (B, heads, T, D) -> ((B, T, heads, D), no weights)."""
    if sequences is None:
        raise RuntimeError(
            f"attention {ATTENTION!r} was called without `sequences`: either not through SharedModel, or the model's "
            "layers do not hand keyword arguments down to it"
        )
    if dropout:
        raise RuntimeError("attention dropout must be 0: rollout and update have to see the same network")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer: int = module.layer_idx  # type: ignore[assignment]
    out = sequences.attend(layer, query, key, value, scale, sliding_window, softcap)
    return out.transpose(1, 2), None


AttentionInterface.register(ATTENTION, _attention_layer)
