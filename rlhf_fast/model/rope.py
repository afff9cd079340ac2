"""Rotary embeddings whose angles depend on how long a sequence is: dynamic NTK scaling and longrope.

transformers takes the longest position of a whole batch for them, so that a short sequence beside a long one would be
rotated by the long one's angles. While a `SharedModel` runs, each sequence of a pack gets the angles of its own length:
those of the model's own forward of it alone.

A sequence that grows past the threshold while it is sampled cannot be served: its first tokens would be sampled with
other angles than it is trained with, and the keys that are cached keep the old ones. See `generation_length`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rlhf_fast.model.lora import Routing
from rlhf_fast.runtime.shown import notices

LENGTH_DEPENDENT = ("dynamic", "longrope")


def rope_threshold(config: PreTrainedConfig) -> int | None:
    """Tokens up to which the angles of all layers are the same for every length; None if they are so throughout."""
    text = config.get_text_config(decoder=True)
    found = [_threshold(rope, text) for rope in _ropes(text) if rope.get("rope_type") in LENGTH_DEPENDENT]
    return min(found, default=None)


def tell_of_rope(config: PreTrainedConfig) -> None:
    """Log, once for a kind of model, that responses are sampled in a part of its context."""
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    threshold = rope_threshold(config)
    if threshold is not None and context is not None and threshold < context:
        _log_once(config.model_type, threshold)


@cache
def _log_once(model_type: str, threshold: int) -> None:
    notices.warning(
        "the rotary embedding of %s changes beyond %d tokens: a prompt with a sampled response has to fit in these. "
        "Longer texts can be trained on where nothing is sampled (SFT, comparisons).", model_type, threshold,
    )  # fmt: skip


def _ropes(config: PreTrainedConfig) -> Iterator[dict[str, Any]]:
    """The rotary parameters of a config: one dict, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    yield from [rope] if "rope_type" in rope else [part for part in rope.values() if isinstance(part, dict)]


def _threshold(rope: dict[str, Any], config: PreTrainedConfig) -> int:
    """Dynamic scaling begins at the context that the config states, longrope at the one of before its extension."""
    before = rope.get("original_max_position_embeddings") if rope["rope_type"] == "longrope" else None
    return before or config.max_position_embeddings


def serve_ropes(model: nn.Module, threshold: int | None, routing: Routing) -> None:
    """Wrap the forward of the rotary embeddings of `model`, in place, that depend on the length; harmless to repeat."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        if threshold is not None and kinds & set(LENGTH_DEPENDENT):
            vars(module).pop("forward", None)  # a copy of a model comes with the wrapper of the original
            module.forward = partial(_forward, routing, threshold, module.forward)  # type: ignore[method-assign]


def _forward(
    routing: Routing, threshold: int, plain: Callable[..., Any], x: Tensor, position_ids: Tensor,
    *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    """position_ids (1, T) of packed sequences, each from 0 on, or (B, 1) of one new token for each sequence."""
    if routing.current is None:
        return plain(x, position_ids, *args, **kwargs)
    lengths = _lengths(position_ids)
    lengths = torch.where(lengths <= threshold, 1, lengths)
    out = None
    for length in lengths.unique().tolist():
        own = lengths == length
        plain(x, position_ids[:, :1] * 0, *args, **kwargs)  # forgets the length of the call before
        angles = plain(x, position_ids * own, *args, **kwargs)
        out = angles if out is None else _choose(own, angles, out)
    return out


def _lengths(position_ids: Tensor) -> Tensor:
    """For each token, how many tokens its sequence has so far."""
    rows, tokens = position_ids.shape
    sequence = (position_ids == 0).cumsum(1) + torch.arange(rows, device=position_ids.device)[:, None] * (tokens + 1)
    longest = position_ids.new_zeros(rows * (tokens + 1))
    longest.scatter_reduce_(0, sequence.flatten(), position_ids.flatten(), "amax")
    return longest[sequence] + 1


def _choose(own: Tensor, angles: Any, others: Any) -> Any:
    """`angles` at the tokens `own` (B, T), `others` elsewhere; both a tensor (B, T, D), or a tuple of them."""
    if isinstance(angles, Tensor):
        return torch.where(own[..., None], angles, others)
    return tuple(_choose(own, one, other) for one, other in zip(angles, others, strict=True))
