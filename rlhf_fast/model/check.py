"""Whether an architecture is served exactly, asked of the model itself when it is opened.

A few tokens go through the given model, and longer sequences through a small random model of its kind in which every
window, chunk and change of the rotary embedding lies within their lengths (see `small_copy`). Each has to give, packed
and decoded token by token, what transformers gives for each sequence alone. Whatever differs, or fails, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import accumulate

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_fast.model.attention import ATTENTION, DecodeStep, KVCache, PackedSequences, has_softcap
from rlhf_fast.model.packed_decoder import PackedDecoder, unserved
from rlhf_fast.model.rope import rope_threshold, tell_of_rope
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.small_copy import LONGEST, SPECIAL, VOCABULARY, small_model, stated_thresholds
from rlhf_fast.model.targets import fused_experts
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices

LENGTHS = (5, LONGEST, 1, 12)  # of the sequences of the small model: before, past and around its thresholds
TOLERANCE = {torch.float32: 1e-3}  # relative; others 0.05
SMALL_TOLERANCE = 1e-4
_ADAPTER = "check"
_USE = "Use a decoder such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2 (docs/models.md has the list)."


def check_architecture(shared: SharedModel) -> None:
    """Raise `UsageError`, with the reason, unless this model and a small one of its kind are served exactly.

    Changes nothing: not the weights, nor any generator of random numbers. Says in a log, once, what of the model is
    left out.
    """
    with _refusing(shared.base):
        _check_few_tokens(shared)
    shared.serves_trunk = check_kind(shared.base)
    _tell(shared)


@torch.inference_mode(False)
@torch.enable_grad()
def check_kind(model: PreTrainedModel) -> bool:
    """Raise `UsageError` unless a small random causal language model of the kind of `model` is served exactly; whether
    its layers can also be run from the hidden states of the layer below (see `trunk`).

    Where none can be made, `model` is refused if its config states a threshold, beyond which nobody would have looked;
    else that is logged.
    """
    name = type(model).__name__
    try:
        small = small_model(model)
    except Exception as error:
        reason = f"no small model of its kind can be made for longer sequences: {type(error).__name__}: {error}"
        if thresholds := stated_thresholds(model.config):
            raise _refusal(name, f"its config states {', '.join(thresholds)}, and {reason}") from error
        _log_once(f"{name} was checked with six tokens, without adapters and without decoding: {reason}")
        return False
    with _refusing(model):
        shared = SharedModel(small)
        _check_small(shared)
    fault = _trunk_fault(shared)
    if fault is not None:
        _log_once(f"layers of {name} share more than hidden states ({fault}): all of them run for every role.")
    return fault is None


@contextmanager
def _refusing(model: PreTrainedModel) -> Iterator[None]:
    """Whatever fails within is a reason to refuse `model`; but want of memory says nothing about it."""
    try:
        yield
    except (UsageError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise _refusal(type(model).__name__, f"a forward ended in {type(error).__name__}: {error}") from error


def _refusal(name: str, reason: str) -> UsageError:
    return UsageError(f"{name} is not supported: {reason.rstrip('.')}. {_USE}")


@torch.no_grad()
def _check_few_tokens(shared: SharedModel) -> None:
    """The given model itself, in its dtype: its attention, its head, and that every layer fills the `KVCache`."""
    name, layers = type(shared.base).__name__, shared.base.config.get_text_config(decoder=True).num_hidden_layers
    if shared.backbone is shared.base:
        raise _refusal(name, "its layers cannot be run without its language-model head")
    tokens = torch.arange(1, 7, device=shared.device) * (shared.lm_head[0].shape[0] // 8)  # no special ones
    cache = KVCache(2, 6)
    hidden = shared.prefill(torch.cat([tokens, tokens]), PackedSequences([0, 6, 12], cache), None)[6:]
    if len(cache.keys) != layers:
        reason = f"{len(cache.keys)} of its {layers} layers keep keys and values by transformers' AttentionInterface"
        raise _refusal(name, f"{reason}, expected all of them")
    shared.cache_bytes = cache.nbytes() // 12  # known before the layers may be divided among processes
    logits, expected, tolerance = (
        _logits(shared, hidden),
        _own_logits(shared, tokens),
        TOLERANCE.get(shared.dtype, 0.05),
    )
    if not _error(logits, expected) <= tolerance:
        if _error(_logits(shared, _own_hidden(shared, tokens)), expected) > tolerance:
            raise _refusal(name, "its head scales its logits, or changes them in another way than is read here")
        _compare(name, "packed logits", logits, expected, tolerance)


def _check_small(small: SharedModel) -> None:
    """A small model in float32: packed, then packed and decoded with an adapter on every linear layer."""
    name, generator = type(small.base).__name__, torch.Generator().manual_seed(0)
    sequences = [torch.randint(SPECIAL, VOCABULARY, (n,), generator=generator).to(small.device) for n in LENGTHS]
    with torch.no_grad():
        packed = _packed_logits(small, sequences, None)
    _compare(
        name,
        "packed logits of longer sequences",
        packed,
        _each_alone(small, sequences),
        SMALL_TOLERANCE,
    )
    with torch.random.fork_rng(devices=[]):
        small.add_adapter(_ADAPTER, LoraConfig(r=2, lora_alpha=2, target_modules="all-linear"))
    for parameter in small.parameters(_ADAPTER):
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted = _packed_logits(small, sequences, _ADAPTER)
    adapted.square().mean().backward()
    starts, steps = _starts(rope_threshold(small.base.config))
    text = sequences[LENGTHS.index(LONGEST)]
    following = torch.stack([text[start : start + steps] for start in starts])
    decoded = _decoded_logits(small, [text[:start] for start in starts], following)
    _merge(small)
    _compare(name, "packed logits with an adapter", adapted, _each_alone(small, sequences), SMALL_TOLERANCE)
    alone = torch.stack([_own_logits(small, text[: start + steps])[start:] for start in starts])
    _compare(name, "logits of decoding with a key-value cache", decoded, alone, SMALL_TOLERANCE)


def _trunk_fault(small: SharedModel) -> str | None:
    """Why a forward that starts from the hidden states below the last layer is not the whole forward, or None."""
    small.remove_adapter(_ADAPTER)
    last = [len(small.decoder_layers) - 1]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            small.add_adapter(_ADAPTER, LoraConfig(target_modules=small.linear_layers, layers_to_transform=last))
            tokens, cu = torch.arange(SPECIAL, SPECIAL + LONGEST, device=small.device), [0, 5, LONGEST]
            states, whole = small.trunk_states(tokens, cu), small.hidden(tokens, cu, _ADAPTER)
            if states is None:
                return "it has no layers to leave out"
            error = _error(small.hidden(tokens, cu, _ADAPTER, trunk=states), whole)
            return None if error < SMALL_TOLERANCE else f"without the ones below, states differ by {error:.3g}"
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a layer misses: the trunk is only not used, and the line says why
        return f"{type(error).__name__}: {error}"


def _starts(threshold: int | None) -> tuple[tuple[int, ...], int]:
    """Lengths of the prompts that are decoded, and how many tokens follow; none crosses a threshold of the rotary
    embedding, which is refused where it would happen."""
    return ((13, 3, 1), 5) if threshold is None else ((max(threshold - 3, 1), 1), min(3, threshold - 1))


def _each_alone(shared: SharedModel, sequences: list[Tensor]) -> Tensor:
    return torch.cat([_own_logits(shared, sequence) for sequence in sequences])


def _packed_logits(shared: SharedModel, sequences: list[Tensor], adapter: str | None) -> Tensor:
    """(T, V) f32 of the sequences side by side."""
    cu = [0, *accumulate(map(len, sequences))]
    return _logits(shared, shared.hidden(torch.cat(sequences), cu, adapter))


@torch.no_grad()
def _decoded_logits(shared: SharedModel, prompts: list[Tensor], following: Tensor) -> Tensor:
    """(B, N, V) f32 after each token of `following` (B, N), decoded one by one after the prompts."""
    decode = (
        PackedDecoder(shared, _ADAPTER, LONGEST) if unserved(shared) is None else partial(shared.decode, route=_ADAPTER)
    )
    cache = KVCache(len(prompts), LONGEST)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=shared.device)
    shared.prefill(torch.cat(prompts), PackedSequences([0, *accumulate(lengths.tolist())], cache), _ADAPTER)
    steps = [
        decode(following[:, i].contiguous(), DecodeStep(cache, lengths + i, int(lengths.max()) + i))
        for i in range(following.shape[1])
    ]
    return _logits(shared, torch.stack(steps, 1))


@torch.no_grad()
def _merge(shared: SharedModel) -> None:
    """Add the adapter into the weights of a model that nobody else has."""
    for layer in shared.wrapped.values():
        layer.weight().add_(layer.lora_b[_ADAPTER] @ layer.lora_a[_ADAPTER], alpha=layer.scale[_ADAPTER])


def _compare(name: str, what: str, logits: Tensor, own: Tensor, tolerance: float) -> None:
    if not (error := _error(logits, own)) <= tolerance:
        raise _refusal(name, f"{what} differ from its own by {error:.3g} (relative, allowed {tolerance})")


def _error(logits: Tensor, own: Tensor) -> float:
    return float((logits.detach() - own).abs().max() / own.abs().max().clamp_min(1e-6))


def _logits(shared: SharedModel, hidden: Tensor) -> Tensor:
    """(..., V) f32 of hidden (..., H), as `rlhf_kernels` reads the head."""
    weight, bias = shared.lm_head
    logits = hidden.float() @ weight.float().t()
    logits = logits if bias is None else logits + bias.float()
    return logits if shared.softcap is None else torch.tanh(logits / shared.softcap) * shared.softcap


@torch.no_grad()
def _own_logits(shared: SharedModel, tokens: Tensor) -> Tensor:
    """(T, V) f32 of tokens (T,) through the model's own attention and head."""
    with own_attention(shared):
        if rope_threshold(shared.base.config) is not None:  # dynamic scaling remembers the longest sequence so far
            shared.base(input_ids=tokens[None, :1], use_cache=False)
        return shared.base(input_ids=tokens[None], use_cache=False).logits[0].float()


def _own_hidden(shared: SharedModel, tokens: Tensor) -> Tensor:
    """(T, H) last hidden states of tokens (T,) through the model's own attention."""
    with own_attention(shared):
        return shared.backbone(input_ids=tokens[None], use_cache=False, return_dict=True).last_hidden_state[0]


@contextmanager
def own_attention(shared: SharedModel) -> Iterator[None]:
    """The base with an attention of transformers inside, for a check of ours.

    SDPA where the model has it: the same products in the same order as ours; in bfloat16 another order differs a lot.
    """
    fused = shared.base._supports_sdpa and not has_softcap(shared.base.config)
    shared.base.set_attn_implementation("sdpa" if fused else "eager")
    try:
        yield
    finally:
        shared.base.set_attn_implementation(ATTENTION)


def _tell(shared: SharedModel) -> None:
    """Log, once for an architecture, what of a model that is served is left out."""
    name, experts = type(shared.base).__name__, fused_experts(shared.decoder_layers)
    if experts is not None and not shared.train_base:
        _log_once(
            f"adapters leave the experts of {name} out: {experts[0]} holds those of a layer in one tensor, "
            f"{experts[1]:.0%} of the weights of the decoder layers. The linear layers beside them get adapters; "
            "use_peft=False trains everything."
        )
    if shared.places.as_experts and not shared.train_base:
        kinds = sorted({layer.rpartition(".")[2] for layer in shared.places.as_experts})
        _log_once(f"adapters leave {', '.join(kinds)} of {name} out too: PEFT takes these names for the experts'.")
    tell_of_rope(shared.base.config)


@cache
def _log_once(line: str) -> None:
    notices.warning(line)
