"""An adapter added to the weights of its base; and a reward adapter as `AutoModelForSequenceClassification` opens it:
base and adapter merged, and the head as `score`.

transformers reads the score at the last token that is not padding, by the pad id of the config. A pad token that is
also EOS, or can end or stand in a text, would move that place: such a tokenizer gets a pad token of its own. A `score`
layer has no bias: that of our head goes into the bias of the last norm where there is one, which changes no other
number; else the model is refused, or written without it where that is asked for.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.model.check import own_attention
from rlhf_fast.model.roles import adapter_critic, sequence_scores
from rlhf_fast.model.shared import ScalarHead, SharedModel
from rlhf_fast.rewards.classifier import EXPORTED
from rlhf_fast.runtime.errors import UsageError


@torch.no_grad()
def merge(shared: SharedModel, name: str | None) -> None:
    """Put W + scale B A in place of each W that adapter `name` adapts (Hu et al. 2021); with None, leave the base as it
    is. The base (f32, on the CPU) is a plain model of transformers afterwards."""
    for place, layer in shared.wrapped.items():
        if name is not None and name in layer.scale:
            layer.weight().add_(layer.lora_b[name] @ layer.lora_a[name], alpha=layer.scale[name])
        shared.base.set_submodule(place, layer.base)


PAD = "<|pad|>"
TOLERANCE = 1e-4  # of the largest score, or of 1


@torch.no_grad()
def classifier_of(
    shared: SharedModel, name: str, tokenizer: PreTrainedTokenizerBase, *, leave_out_bias: bool
) -> tuple[PreTrainedModel, float]:
    """Adapter `name` of `shared` (f32) as a classifier with one output, whose logits are its scores less the number
    that is returned: 0, or with `leave_out_bias` the head's bias where the architecture has no place for it.

    `shared` is merged in place, its parts become the classifier's. `tokenizer` is changed: see the head of this file.
    Raises `UsageError` for an architecture that has no such class, or one whose logits are not the scores.
    """
    tokens = (torch.arange(1, 7) * (shared.lm_head[0].shape[0] // 8)).tolist()
    expected = float(sequence_scores(adapter_critic(shared, name), [tokens], len(tokens)))
    head = shared.heads[name]
    merge(shared, name)
    model, score = _empty_classifier(shared)
    score.weight = nn.Parameter(head.weight.detach()[None].clone())
    bias = float(head.bias)
    if bias and _absorbed(shared, head, score):
        bias = 0.0
    if bias and not leave_out_bias:
        raise UsageError(
            f"the head adds {bias:.6g} to every score, and {type(model).__name__} has no place for that number. Give "
            "head_bias=leave_out: every logit is then the score less this constant, which changes no comparison and "
            "which the card and config.json state."
        )
    _separate_pad(model, tokenizer, shared.eos_ids)
    setattr(model.config, EXPORTED, {"score_bias": bias})
    _check(shared, model, tokens, expected - bias)
    return model, bias


def _empty_classifier(shared: SharedModel) -> tuple[PreTrainedModel, nn.Linear]:
    """The class for the base's architecture, around the base's own layers; its `score` layer is still to be filled."""
    name = type(shared.base).__name__
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(shared.base.config), None)
    if kind is None:
        raise UsageError(
            f"transformers has no sequence classifier for {name} ({shared.base.config.model_type}), so its reward "
            "adapter cannot be exported. Use the adapter itself as reward model, or another base."
        )
    config = copy.deepcopy(shared.base.config)
    config.num_labels = 1
    with torch.device("meta"):
        model = kind._from_config(config)
    score = getattr(model, "score", None)
    linear = isinstance(score, nn.Linear) and score.weight.shape == (1, shared.hidden_size)
    if type(model.base_model) is not type(shared.backbone) or not linear:
        raise UsageError(
            f"{type(model).__name__} of transformers is not {name} with a linear layer `score`, so the reward adapter "
            "cannot be exported as one. Use the adapter itself as reward model."
        )
    setattr(model, model.base_model_prefix, shared.backbone)
    return model.eval(), cast(nn.Linear, score)


def _absorbed(shared: SharedModel, head: ScalarHead, score: nn.Linear) -> bool:
    """Put the head's bias where the classifier has a place for it; False where it has none."""
    if score.bias is not None:
        score.bias = nn.Parameter(head.bias.detach().reshape(1).clone())
        return True
    inside = {id(module) for layer in shared.decoder_layers for module in layer.modules()}
    norms = [m for m in shared.backbone.modules() if isinstance(m, nn.LayerNorm) and id(m) not in inside]
    size = head.weight @ head.weight
    if not norms or norms[-1].bias is None or not size > 0:
        return False
    norms[-1].bias.add_(head.weight * (head.bias / size))  # w . (h + b w / |w|^2) = w . h + b
    return True


def _separate_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: tuple[int, ...]) -> None:
    """Give model and tokenizer a pad token that stands for nothing else, with a row of embeddings, and pad on the
    right, which leaves positions as they are."""
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    others = {token for role, token in tokenizer.special_tokens_map.items() if role != "pad_token"}
    pad = tokenizer.pad_token_id
    if pad is None or tokenizer.pad_token in others or pad in eos_ids or pad >= rows:
        names = (PAD, *(f"<|pad_{number}|>" for number in range(2, 100)))
        tokenizer.add_special_tokens({"pad_token": next(name for name in names if name not in tokenizer.get_vocab())})
        if tokenizer.pad_token_id >= rows:
            model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    tokenizer.padding_side = "right"
    for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
        config.pad_token_id = tokenizer.pad_token_id


def _check(shared: SharedModel, model: PreTrainedModel, tokens: list[int], expected: float) -> None:
    """Raise `UsageError` unless the logits of `tokens`, also beside padding, are `expected`."""
    pad = model.config.get_text_config().pad_token_id
    rows = torch.tensor([[*tokens, pad, pad], [*tokens, *tokens[:2]]], device=shared.device)
    mask = torch.ones_like(rows)
    mask[0, -2:] = 0
    with own_attention(shared):
        logits: Tensor = model(input_ids=rows, attention_mask=mask).logits
    error = abs(float(logits[0, 0]) - expected) / max(1.0, abs(expected))
    if not error <= TOLERANCE:
        raise UsageError(
            f"{type(model).__name__} of transformers gives {float(logits[0, 0]):.6g} where the adapter's score is "
            f"{expected:.6g}; expected the same. Its forward is not served: use the adapter itself as reward model."
        )
