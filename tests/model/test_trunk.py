"""The layers below every adapter run once: what starts from their states equals the whole forward."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from torch import nn

from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.trunk import keep_trunk
from tests.model_cases import ARCHITECTURES, tiny_model, tokens


def with_adapters(architecture: str = "llama", layers: tuple[int, ...] = (1,)) -> SharedModel:
    shared = SharedModel(tiny_model(architecture))
    for name in ("a", "b"):
        config = LoraConfig(r=4, lora_alpha=8, target_modules=shared.linear_layers, layers_to_transform=list(layers))
        shared.add_adapter(name, config)
        for parameter in shared.parameters(name):
            nn.init.normal_(parameter, std=0.2)
    return shared


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_and_gradients_are_those_of_the_whole_forward(architecture, recompute):
    shared = with_adapters(architecture)
    if recompute:
        shared.checkpoint_activations()
    packed = Packed.from_sequences(tokens(7, 3, 5))
    states = shared.trunk_states(packed.tokens, packed.cu_seqlens)
    assert states is not None and states.depth == 1 and not states.hidden.requires_grad
    found = []
    for trunk in (None, states):
        hidden = shared.hidden(packed.tokens, packed.cu_seqlens, "b", trunk=trunk)
        hidden.square().sum().backward()
        found.append([hidden.detach(), *(p.grad.clone() for p in shared.parameters("b"))])
        for parameter in shared.parameters("b"):
            parameter.grad = None
    for whole, continued in zip(*found, strict=True):
        torch.testing.assert_close(continued, whole, atol=1e-6, rtol=1e-5)


def test_layers_above_do_not_run_for_the_trunk_nor_those_below_after_it():
    shared = with_adapters()
    calls: list[int] = []
    for index, layer in enumerate(shared.decoder_layers):
        layer.self_attn.register_forward_hook(lambda *_, index=index: calls.append(index))
    packed = Packed.from_sequences(tokens(4))
    states = shared.trunk_states(packed.tokens, packed.cu_seqlens)
    assert calls == [0]
    shared.hidden(packed.tokens, packed.cu_seqlens, "a", trunk=states)
    assert calls == [0, 1]


def test_where_adapters_begin_is_where_the_trunk_ends():
    assert with_adapters(layers=(1,)).trunk_depth == 1
    assert with_adapters(layers=(0, 1)).trunk_depth == 0
    assert SharedModel(tiny_model()).trunk_depth == 0  # nothing to share without adapters
    assert SharedModel(tiny_model(), train_base=True).trunk_depth == 0
    removed = with_adapters(layers=(1,))
    for name in ("a", "b"):
        removed.remove_adapter(name)
    assert removed.trunk_depth == 0


def test_states_of_another_model_are_not_used_and_refused():
    shared, other = with_adapters(), with_adapters()
    packed = Packed.from_sequences(tokens(4, 3))
    packed.trunk = other.trunk_states(packed.tokens, packed.cu_seqlens)
    expected = shared.hidden(packed.tokens, packed.cu_seqlens, "a")[packed.rows]
    torch.testing.assert_close(Policy(shared, "a").hidden(packed), expected, atol=0, rtol=0)
    with pytest.raises(ValueError, match="another model"):
        shared.hidden(packed.tokens, packed.cu_seqlens, "a", trunk=packed.trunk)


def test_a_copy_of_the_base_has_a_trunk_of_its_own():
    shared = with_adapters()
    copied = SharedModel(copy.deepcopy(shared.base))
    packed = Packed.from_sequences(tokens(6))
    expected = shared.hidden(packed.tokens, packed.cu_seqlens, None)
    torch.testing.assert_close(copied.hidden(packed.tokens, packed.cu_seqlens, None), expected, atol=0, rtol=0)


def test_kept_states_serve_all_roles_in_any_order_and_only_the_sequences_they_belong_to():
    shared = with_adapters()
    sequences = tokens(7, 3, 5)
    packed, again = Packed.from_sequences(sequences), Packed.from_sequences([sequences[2], sequences[0]])
    other = Packed.from_sequences([*sequences, [5, 6]])
    asked = [(packed, sequences), (again, [sequences[2], sequences[0]]), (other, [*sequences, [5, 6]])]
    expected = [Policy(shared, name).hidden(p) for name in ("a", "b", None) for p, _ in asked]
    calls: list[int] = []
    shared.decoder_layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    with keep_trunk([shared, shared], sequences, MicroBatches(8)):
        assert len(calls) == 2  # 3 + 5 tokens, then 7
        packs = [p.with_trunk(shared, own) for p, own in asked]
        found = [Policy(shared, name).hidden(p) for name in ("a", "b", None) for p in packs]
    assert len(calls) == 2 + 3  # `other` holds a sequence that was not kept
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    assert shared.trunk_cache is None


def test_an_adapter_added_below_the_kept_states_is_refused_rather_than_skipped():
    shared = with_adapters()
    sequences = tokens(4)
    with keep_trunk([shared], sequences, MicroBatches(8)):
        shared.add_adapter("c", LoraConfig(r=2, target_modules="all-linear"))
        with pytest.raises(ValueError, match="below them"):
            Policy(shared, "c").hidden(Packed.from_sequences(sequences).with_trunk(shared, sequences))
