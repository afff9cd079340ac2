"""What adapters compute and which LoRA options are served: PEFT on an untouched model is the yardstick."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_fast.model.adapter_files import load_adapter
from rlhf_fast.model.lora import Route
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import ARCHITECTURES, tiny_model, tokens

ALL_LINEAR = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def with_adapters(*names: str, architecture: str = "llama") -> SharedModel:
    """A tiny model with adapters whose A and B are random."""
    shared = SharedModel(tiny_model(architecture))
    for name in names:
        shared.add_adapter(name, ALL_LINEAR)
        for _, parameter in shared.named_parameters(name):
            torch.nn.init.normal_(parameter, std=0.2)
    return shared


def peft_model(config: LoraConfig, architecture: str = "llama") -> peft.PeftModel:
    """PEFT's own adapter on an untouched model, A and B random."""
    model = peft.get_peft_model(tiny_model(architecture), copy.deepcopy(config)).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def own_hidden(model: torch.nn.Module, sequence: list[int]) -> Tensor:
    return model(input_ids=torch.tensor([sequence]), output_hidden_states=True).hidden_states[-1][0]


def hidden(shared: SharedModel, sequences: list[list[int]], route: Route | str | None) -> Tensor:
    packed = Packed.from_sequences(sequences)
    return shared.hidden(packed.tokens, packed.cu_seqlens, route)


def gradients(shared: SharedModel, name: str) -> dict[str, Tensor]:
    return {key: p.grad for key, p in shared.named_parameters(name) if p.grad is not None}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapter_gradients_of_a_packed_forward_equal_peft_one_sequence_at_a_time(architecture, tmp_path):
    theirs = peft_model(ALL_LINEAR, architecture)
    theirs.save_pretrained(tmp_path)
    shared = SharedModel(tiny_model(architecture))
    load_adapter(shared, tmp_path, "a")

    sequences = tokens(5, 1, 11, 8)
    weights = torch.linspace(-1, 1, 25 * 32).view(25, 32)  # every position and feature counts differently
    (hidden(shared, sequences, "a") * weights).sum().backward()
    for sequence, w in zip(sequences, weights.split([5, 1, 11, 8]), strict=True):
        (own_hidden(theirs, sequence) * w).sum().backward()

    expected = {
        key.removeprefix("base_model.model.").replace(".default", ""): p.grad
        for key, p in theirs.named_parameters()
        if "lora_" in key
    }
    ours = gradients(shared, "a")
    assert ours.keys() == expected.keys()
    for key, gradient in expected.items():
        scale = float(gradient.abs().max())  # fp32 rounding, in another order of the sums: 1e-5 of it
        assert scale > 0
        torch.testing.assert_close(ours[key], gradient, atol=5e-5 * scale, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"use_rslora": True},
        {"layers_to_transform": [1]},
        {"rank_pattern": {"q_proj": 2}},
        {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 32}},
        {"alpha_pattern": {"layers.1.mlp.up_proj": 2}, "target_modules": ["up_proj", "q_proj"]},
        {"target_modules": r".*layers\.1\..*(q|v)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
        {"target_modules": None},
    ],
    ids=str,
)
def test_a_served_option_means_what_it_means_in_peft(options, tmp_path):
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"], **options})
    theirs = peft_model(config)
    theirs.save_pretrained(tmp_path)
    shared = SharedModel(tiny_model())
    load_adapter(shared, tmp_path, "a")
    sequence = tokens(9)[0]
    expected = own_hidden(theirs, sequence)
    assert (expected - own_hidden(tiny_model(), sequence)).abs().max() > 1e-2
    torch.testing.assert_close(hidden(shared, [sequence], "a"), expected, atol=1e-5, rtol=1e-5)

    shared.add_adapter("fresh", config)
    sizes = {key: p.shape for key, p in shared.named_parameters("a")}
    assert {key: p.shape for key, p in shared.named_parameters("fresh")} == sizes


def test_an_initialisation_that_is_not_ours_is_refused_for_a_fresh_adapter():
    for initialisation in (False, "gaussian", "pissa"):
        with pytest.raises(UsageError, match="init_lora_weights"):
            config = LoraConfig(target_modules="all-linear", init_lora_weights=initialisation)
            SharedModel(tiny_model()).add_adapter("a", config)


def test_a_fresh_adapter_changes_nothing_and_learns():
    shared = SharedModel(tiny_model())
    shared.add_adapter("a", ALL_LINEAR)
    sequences = tokens(6, 3)
    out = hidden(shared, sequences, "a")
    torch.testing.assert_close(out, hidden(shared, sequences, None))
    out.square().sum().backward()
    assert all(gradient.abs().max() > 0 for key, gradient in gradients(shared, "a").items() if "lora_B" in key)


def test_gradients_of_two_adapters_and_the_bare_base_in_one_forward_equal_three_forwards():
    first, second, third = tokens(6, 9, 4)
    together, apart = with_adapters("a", "b"), with_adapters("a", "b")
    hidden(together, [first, third, second], Route(("a", None, "b"), (0, 6, 10, 19))).square().sum().backward()
    for sequence, name in ((first, "a"), (second, "b"), (third, None)):
        loss = hidden(apart, [sequence], name).square().sum()
        if name is not None:
            loss.backward()
    for name in ("a", "b"):
        expected = gradients(apart, name)
        assert expected and gradients(together, name).keys() == expected.keys()
        for key, gradient in expected.items():
            torch.testing.assert_close(gradients(together, name)[key], gradient, atol=1e-4, rtol=1e-4)


def test_a_removed_adapter_frees_its_parameters_and_its_name():
    shared = with_adapters("a", "b")
    kept, bytes_of_two = shared.parameters("b"), sum(p.nbytes for p in shared.base.parameters())
    freed = sum(p.nbytes for p in shared.parameters("a"))
    shared.remove_adapter("a")
    assert sum(p.nbytes for p in shared.base.parameters()) == bytes_of_two - freed
    assert [id(p) for p in shared.parameters("b")] == [id(p) for p in kept]
    with pytest.raises(UsageError, match="no adapter 'a'; there are: b"):
        hidden(shared, tokens(3), "a")
    shared.add_adapter("a", ALL_LINEAR)
    with pytest.raises(UsageError, match="there already"):
        shared.add_adapter("a", ALL_LINEAR)


def test_dropout_of_the_base_is_off_while_an_adapter_trains():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).train()
    assert model.config.resid_pdrop == model.config.attn_pdrop == 0.1
    shared = SharedModel(model)
    shared.add_adapter("a", ALL_LINEAR)
    outputs = [hidden(shared, tokens(9), "a") for _ in range(2)]
    assert outputs[0].requires_grad
    torch.testing.assert_close(outputs[0], outputs[1], atol=0, rtol=0)


def test_a_copy_of_a_shared_base_for_full_training_has_no_adapters(tmp_path):
    shared = with_adapters("a")
    full = SharedModel(copy.deepcopy(shared.base), train_base=True)
    sequence = tokens(7)
    torch.testing.assert_close(hidden(full, sequence, None), hidden(shared, sequence, None))
    assert [name for name, _ in full.base.named_parameters()] == [name for name, _ in tiny_model().named_parameters()]
    hidden(full, sequence, None).sum().backward()
    assert full.base.model.layers[0].mlp.up_proj.weight.grad.abs().max() > 0
    assert hidden(shared, sequence, "a").sub(hidden(shared, sequence, None)).abs().max() > 1e-2  # still there


def test_training_the_base_gives_every_parameter_of_it_a_gradient():
    shared = SharedModel(tiny_model(), train_base=True)
    (hidden(shared, tokens(7, 3), None) @ shared.lm_head[0].T).square().sum().backward()
    assert all(p.grad is not None for p in shared.base.parameters())
