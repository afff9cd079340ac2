"""Activation checkpointing recomputes every layer once, with the forward's adapters, and changes no gradient."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_fast.model.lora import Route
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import ARCHITECTURES, tiny_model, tokens

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def with_adapters(architecture: str, *, recompute: bool) -> SharedModel:
    shared = SharedModel(tiny_model(architecture))
    for name in ("a", "b"):
        shared.add_adapter(name, LORA)
        for parameter in shared.parameters(name):
            nn.init.normal_(parameter, std=0.2)
    if recompute:
        shared.checkpoint_activations()
    return shared


def hidden(shared: SharedModel, sequences: list[list[int]], route: Route | str | None) -> Tensor:
    packed = Packed.from_sequences(sequences)
    return shared.hidden(packed.tokens, packed.cu_seqlens, route)


@pytest.mark.parametrize("route", ["a", Route(("a", "b", None), (0, 7, 10, 15))], ids=["one", "two"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_those_without_it_though_other_adapters_run_in_between(architecture, route):
    found = []
    for recompute in (False, True):
        shared = with_adapters(architecture, recompute=recompute)
        loss = hidden(shared, tokens(7, 3, 5), route).square().sum()
        hidden(shared, tokens(5), "b")
        loss.backward()
        found.append([p.grad for name in ("a", "b") for p in shared.parameters(name)])
    for plain, recomputed in zip(*found, strict=True):
        assert (plain is None) == (recomputed is None)
        if plain is not None:
            assert plain.abs().max() > 0
            torch.testing.assert_close(recomputed, plain, atol=0, rtol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_layer_runs_once_forward_and_once_backward(architecture):
    shared = with_adapters(architecture, recompute=True)
    layers = [m for m in shared.base.modules() if isinstance(m, GradientCheckpointingLayer)]
    calls = {i: 0 for i in range(len(layers))}
    for i, layer in enumerate(layers):
        norm = next(m for name, m in layer.named_children() if "norm" in name or name == "ln_1")
        norm.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
    loss = hidden(shared, tokens(7), "a").sum()
    assert calls == {0: 1, 1: 1}
    loss.backward()
    assert calls == {0: 2, 1: 2}
    with torch.no_grad():
        hidden(shared, tokens(7), "a")
    assert calls == {0: 3, 1: 3}


def test_less_memory_is_kept_for_backward():
    def kept(recompute: bool) -> int:
        shared, sizes = with_adapters("llama", recompute=recompute), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            hidden(shared, tokens(60), "a")
        return sum(sizes)

    assert kept(True) < kept(False) / 4


def test_dropout_that_a_layer_applies_by_itself_stays_off():
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=97, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, dropout=0.5,
    )  # fmt: skip
    shared = SharedModel(AutoModelForCausalLM.from_config(config))
    shared.add_adapter("a", LORA)
    plain = hidden(shared, tokens(9), "a")
    shared.checkpoint_activations()
    torch.testing.assert_close(hidden(shared, tokens(9), "a"), plain, atol=0, rtol=0)


def test_a_model_without_layers_to_checkpoint_is_refused():
    shared = SharedModel(tiny_model())
    shared.base.model.layers = nn.ModuleList()
    with pytest.raises(UsageError, match="gradient_checkpointing=False"):
        shared.checkpoint_activations()
