"""Value and reward models as TRL reads them: a `score` on the last hidden states, on the token ids as sampled.

Classifier      a decoder of transformers with any `score` that reads each state by itself: read packed
ModuleCritic    any other module with `base_model_prefix` and `score`: its own forward, without padding
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_fast.model.batches import cut_by_tokens
from rlhf_fast.model.check import check_kind, own_attention
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Critic
from rlhf_fast.model.shared import ScoreHead, SharedModel
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.trainer.given import Given, open_shared, whole

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Classifier(Critic):
    """A scalar model that is a whole classifier; training it changes those of its weights that require a gradient."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.base.named_parameters()


class ModuleCritic:
    """A module whose attribute `base_model_prefix` names its backbone and whose `score` reads the last hidden states.

    Runs the object itself, in `eval()` for the time of a forward, on sequences of one length at a time. As a reward it
    gives the scalar at the last token, in forwards of at most `max_tokens` tokens.
    """

    reads_reference: ClassVar[bool] = False
    models: ClassVar[tuple[SharedModel, ...]] = ()

    def __init__(self, role: str, module: Any, device: torch.device, max_tokens: int) -> None:
        self.name, self.module, self.device, self.max_tokens = role, module, device, max_tokens
        if isinstance(module, nn.Module):
            module.to(device)

    def values(self, packed: Packed) -> Tensor:
        """(R,) f32 at `packed.rows`; differentiable."""
        tokens = [packed.tokens[start:end] for start, end in pairwise(packed.cu_seqlens) if start < end]
        return torch.cat([self._read(ids[None])[0] for ids in tokens])[packed.rows]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.module.named_parameters()

    @torch.no_grad()
    def score(self, batch: RewardBatch) -> Tensor:
        """(B,) f32 on the CPU."""
        out = torch.empty(len(batch))
        by_length: dict[int, list[int]] = {}
        for index, sequence in enumerate(batch.sequences):
            by_length.setdefault(len(sequence), []).append(index)
        for length, rows in by_length.items():
            for group in cut_by_tokens([length] * len(rows), self.max_tokens):
                chosen = [rows[i] for i in group]
                ids = torch.tensor([batch.sequences[row] for row in chosen], device=self.device)
                out[chosen] = self._read(ids)[:, -1].cpu()
        return out

    def _read(self, ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T) f32."""
        backbone = getattr(self.module, self.module.base_model_prefix)
        where = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with _evaluating(self.module):
            states = backbone(
                input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=where, return_dict=True,
                output_hidden_states=True, use_cache=False,
            ).hidden_states[-1]  # fmt: skip
            values = self.module.score(states)
        if tuple(values.shape) != (*ids.shape, 1):
            raise UsageError(
                f"{self.name}: score gave a tensor of shape {tuple(values.shape)} for {tuple(ids.shape)} tokens; "
                f"expected {(*ids.shape, 1)}, one number a token."
            )
        return values[..., 0].float()


@contextmanager
def _evaluating(module: Any) -> Iterator[None]:
    """`module` without dropout inside; each of its modules gets its own mode back."""
    training = [m for m in module.modules() if m.training] if isinstance(module, nn.Module) else []
    for each in training:
        each.training = False
    try:
        yield
    finally:
        for each in training:
            each.training = True


def has_score(model: Any) -> bool:
    """Whether TRL would read `model`: by its backbone, which `base_model_prefix` names, and its `score`."""
    prefix = getattr(model, "base_model_prefix", None)
    return (
        isinstance(prefix, str) and callable(getattr(model, prefix, None)) and callable(getattr(model, "score", None))
    )


def open_scorer(
    role: str, model: Any, device: torch.device, max_tokens: int, *, train: bool = False
) -> Classifier | ModuleCritic:
    """`model` read packed where that can be done. `role` names it in errors.

    Raises `UsageError` for a model without a backbone and a `score` of one output.
    """
    if isinstance(model, (PreTrainedModel, PeftModel)):
        score = getattr(whole(model), "score", None)
        if isinstance(score, nn.Module) or not has_score(model):
            return open_classifier(role, model, train=train)
    if not has_score(model):
        raise UsageError(
            f"{role} is a {type(model).__name__}; expected a model loaded by AutoModelForSequenceClassification with "
            "num_labels=1, or a module with base_model_prefix and score."
        )
    return ModuleCritic(role, model, device, max_tokens)


def open_classifier(role: str, model: Given, *, train: bool = False) -> Classifier:
    """A mirror of `model`. `role` names it in errors.

    Raises `UsageError` for a model without a `score` of one output, and for one that packed attention does not
    reproduce.
    """
    if isinstance(getattr(whole(model), "score", None), LoraLayer):
        raise UsageError(f"{role} has an adapter on its layer `score`; name it in modules_to_save instead.")
    shared, adapter = open_shared(role, model, trained=train)
    layer = getattr(shared.base, "score", None)
    if not isinstance(layer, nn.Module):
        raise UsageError(
            f"{role} is a {type(shared.base).__name__} with no layer `score`; expected a decoder loaded by "
            "AutoModelForSequenceClassification with num_labels=1. As a reward, any other classifier can be given as "
            "rlhf_fast.ClassifierReward(name, model, its tokenizer)."
        )
    _check_score(role, layer, shared)
    _check(role, shared)
    shared.serves_trunk = check_kind(shared.base)
    return Classifier(shared, adapter, ScoreHead(layer))


@torch.no_grad()
def _check_score(role: str, layer: nn.Module, shared: SharedModel) -> None:
    """Raise `UsageError` unless `layer` gives one number for each state, whatever stands beside it."""
    dtype = next((p.dtype for p in layer.parameters()), shared.dtype)
    states = torch.linspace(-1, 1, 6 * shared.hidden_size, device=shared.device).view(1, 6, -1).sin().to(dtype)
    together = layer(states)
    if tuple(together.shape) != (1, 6, 1):
        raise UsageError(
            f"{role}: its `score` has {together.shape[-1]} outputs (a tensor of shape {tuple(together.shape)} for 6 "
            "tokens); expected one a token. Load it with num_labels=1."
        )
    alone = torch.cat([layer(states[:, i : i + 1]) for i in range(6)], 1)
    if not torch.allclose(together.float(), alone.float(), atol=0.01 if dtype != torch.float32 else 1e-4, rtol=0.01):
        raise UsageError(
            f"{role}: its `score` mixes the states of several tokens; expected a number for each state by itself. Wrap "
            "it in a module with base_model_prefix and score, whose own forward is run."
        )


@torch.no_grad()
def _check(role: str, shared: SharedModel) -> None:
    """Raise `UsageError` unless packed hidden states of a few tokens are those of the model's own attention."""
    rows = shared.base.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]
    tokens = torch.arange(1, 7, device=shared.device) * (rows // 8)
    packed = shared.hidden(torch.cat([tokens, tokens]), [0, 6, 12], None)[6:].float()
    with own_attention(shared):
        own = shared.backbone(input_ids=tokens[None], use_cache=False).last_hidden_state[0].float()
    error = float((packed - own).abs().max() / own.abs().max().clamp_min(1e-6))
    if not error <= TOLERANCE[shared.dtype]:
        raise UsageError(
            f"{role}: {type(shared.base).__name__} is not supported: packed hidden states differ from its own by "
            f"{error:.3g} (relative). Use a decoder such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2."
        )
