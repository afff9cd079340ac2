"""Activation checkpointing that really happens, and that recomputes with the adapters of the forward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_fast.model.lora import Routing
from rlhf_fast.runtime.errors import UsageError


def checkpoint_activations(model: PreTrainedModel, routing: Routing) -> None:
    """Wrap the forward of every decoder layer of `model`, in place, so that backward computes it again.

    transformers' own switch works only on a layer in training mode, which turns on the dropout of an architecture
    whose layer applies it by itself (OPT). Raises `UsageError` if the architecture has no layer to checkpoint.
    """

    def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), routing.use(routing.current)

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"{type(model).__name__} does not support activation checkpointing; set gradient_checkpointing=False."
        )
    for layer in layers:
        layer.forward = partial(  # type: ignore[method-assign]  # nothing is random in eval: no random state to keep
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
        )
