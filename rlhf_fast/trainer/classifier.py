"""A sequence classifier of transformers, read packed on token ids: as TRL reads value and reward models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf_fast.model.check import check_kind, own_attention
from rlhf_fast.model.head import ScoreHead
from rlhf_fast.model.roles import Critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05}


@dataclass(frozen=True)
class Classifier(Critic):
    """A scalar model that is a whole classifier; training it changes all of its weights."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.base.named_parameters()


def open_classifier(role: str, model: PreTrainedModel, *, train: bool = False) -> Classifier:
    """`model`, changed in place as by `SharedModel`. `role` names it in errors.

    Raises `UsageError` for a model without a `score` layer of one output, and for one that packed attention does not
    reproduce.
    """
    layer = getattr(model, "score", None)
    if not isinstance(layer, nn.Linear) or layer.out_features != 1:
        outputs = f"{layer.out_features} outputs" if isinstance(layer, nn.Linear) else "no linear layer `score`"
        raise UsageError(
            f"{role} is a {type(model).__name__} with {outputs}; expected a decoder loaded by "
            "AutoModelForSequenceClassification with num_labels=1. As a reward, any other classifier can be given as "
            "rlhf_fast.ClassifierReward(name, model, its tokenizer)."
        )
    shared = SharedModel(model, train_base=train)
    _check(role, shared)
    shared.serves_trunk = check_kind(model)
    return Classifier(shared, None, ScoreHead(layer))


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
