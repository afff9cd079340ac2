"""Where adapters go: the linear layers that read text, under names that PEFT reads as we do."""

from __future__ import annotations

import logging

import peft
import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Ernie4_5_MoeConfig,
    FuyuConfig,
    Gemma3Config,
    Gemma4TextConfig,
    Glm4MoeConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PhimoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from rlhf_fast.model.adapter_files import load_adapter, save_adapter
from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.load import load_shared
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.small_copy import small_config
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model, tokens

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def with_adapter(model: PreTrainedModel, **options) -> SharedModel:
    shared = SharedModel(model)
    shared.add_adapter("a", LoraConfig(r=2, lora_alpha=4, **options))
    for parameter in shared.parameters("a"):
        nn.init.normal_(parameter, std=0.2)
    return shared


def logits(shared: SharedModel, sequence: list[int]) -> torch.Tensor:
    return shared.hidden(torch.tensor(sequence), [0, len(sequence)], "a") @ shared.lm_head[0].T


@pytest.mark.parametrize(
    ("config", "decoder", "elsewhere"),
    [
        (Gemma3Config(), "model.language_model.layers.", "model.vision_tower.encoder.layers.0.self_attn.q_proj"),
        (FuyuConfig(), "model.language_model.layers.", "model.vision_embed_tokens"),
    ],
    ids=["gemma3", "fuyu"],
)
def test_what_reads_images_takes_no_adapter(config, decoder, elsewhere):
    shared = with_adapter(model_of(config), target_modules="all-linear")
    assert isinstance(shared.layers[elsewhere], nn.Linear) and elsewhere in shared.places.outside
    assert all(name.startswith(decoder) for name in shared.wrapped)
    assert len(shared.decoder_layers) == shared.base.config.get_text_config().num_hidden_layers
    hidden = shared.hidden(torch.tensor(tokens(9)[0]), [0, 9], "a")
    hidden.square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in shared.parameters("a"))


def test_names_shared_with_a_vision_tower_mean_the_decoder_and_peft_opens_the_file_as_it_is(tmp_path):
    shared = with_adapter(
        model_of(Gemma3Config()), target_modules=["q_proj", "v_proj"], exclude_modules=["layers.1.self_attn.v_proj"]
    )
    language = "model.language_model.layers"
    names = [f"{language}.{i}.self_attn.{kind}_proj" for i, kind in ((0, "q"), (0, "v"), (1, "q"))]
    assert sorted(shared.wrapped) == sorted(names)
    save_adapter(shared, "a", tmp_path, base="tiny")
    theirs = peft.PeftModel.from_pretrained(model_of(Gemma3Config()), tmp_path).eval()
    adapted = {name.removeprefix("base_model.model.") for name, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert adapted == set(names)
    sequence = tokens(9)[0]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(logits(shared, sequence), expected, atol=1e-4, rtol=1e-4)
    again = SharedModel(model_of(Gemma3Config()))
    load_adapter(again, tmp_path, "a")
    assert again.wrapped.keys() == shared.wrapped.keys()


def test_a_target_that_only_a_vision_tower_has_is_refused():
    with pytest.raises(UsageError, match=r"matches only 'model.vision_tower.*fc1' and others that read no text"):
        with_adapter(model_of(Gemma3Config()), target_modules=["fc1"])


@pytest.mark.parametrize(
    ("config", "model"),
    [(Qwen2VLConfig(), Qwen2VLForConditionalGeneration), (LlavaConfig(), LlavaForConditionalGeneration)],
    ids=["qwen2_vl", "llava"],
)
def test_a_model_that_is_no_causal_language_model_is_named_shortly(config, model, tmp_path):
    small = small_config(config)
    small.vision_config.depth = 1
    for name, size in (("embed_dim", 64), ("hidden_size", 64)):
        if hasattr(small.vision_config, name):
            setattr(small.vision_config, name, size)
    model(small).save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match=r"AutoModelForCausalLM of transformers does not open.*its text decoder"
    ) as caught:
        load_shared(str(tmp_path), dtype=torch.float32)
    assert f"is a {config.model_type} model" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("config", "adapted", "left"),
    [
        (Glm4MoeConfig(), ATTENTION, MLP),  # shared experts, and the dense first layer
        (Ernie4_5_MoeConfig(), ATTENTION, MLP),
        (Qwen2MoeConfig(), ATTENTION | MLP | {"shared_expert_gate"}, set()),  # PEFT leaves this family's names alone
        (PhimoeConfig(), ATTENTION, set()),  # its router is a subclass of a linear layer, and returns three things
    ],
    ids=["glm4_moe", "ernie4_5_moe", "qwen2_moe", "phimoe"],
)
def test_peft_opens_an_adapter_of_a_mixture_of_experts_with_equal_logits(config, adapted, left, tmp_path, caplog):
    shared = with_adapter(model_of(config), target_modules="all-linear")
    assert set(shared.linear_layers) == {name.rpartition(".")[2] for name in shared.wrapped} == adapted
    assert {name.rpartition(".")[2] for name in shared.places.as_experts} == left
    save_adapter(shared, "a", tmp_path, base="tiny")
    theirs = peft.PeftModel.from_pretrained(model_of(config), tmp_path).eval()
    sequence = tokens(9)[0]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(logits(shared, sequence), expected, atol=1e-4, rtol=1e-4)
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        check_architecture(SharedModel(model_of(config)))
    assert ("PEFT takes these names" in caplog.text) == bool(left)


def test_a_layer_that_peft_would_take_for_experts_is_refused_by_name():
    with pytest.raises(UsageError, match="gate_proj' is named as PEFT names experts"):
        with_adapter(model_of(Glm4MoeConfig()), target_modules=["q_proj", "gate_proj"])


@pytest.mark.parametrize("name", ["gate_proj", "w1"])
def test_a_target_that_no_layer_has_is_said(name, caplog):
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        shared = with_adapter(tiny_model("gpt2"), target_modules=["c_attn", name])
    assert sorted(shared.wrapped) == [f"transformer.h.{i}.attn.c_attn" for i in range(2)]
    assert f"target_modules names {name}, which is no linear layer here" in caplog.text


class Numbered(nn.Module):
    """A feed-forward block whose layers have numbers for names, as the decoder layers have."""

    def __init__(self, config):
        super().__init__()
        self.steps = nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.Linear(48, 32))

    def forward(self, x):
        return self.steps(x)


class Model(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = Numbered(config)


@pytest.mark.parametrize("layer", [0, 1])
def test_all_linear_names_layers_that_share_their_last_name_with_others_by_more_of_it(layer, tmp_path):
    def model():
        torch.manual_seed(0)
        return Model(LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)).eval()

    names = SharedModel(model()).linear_layers
    assert [name for name in names if name[-1].isdigit()] == [
        "2", "layers.0.mlp.steps.0", "layers.1.mlp.steps.0",  # "0" is also that of a decoder layer; "2" of nothing else
    ]  # fmt: skip
    shared = with_adapter(model(), target_modules=names, layers_to_transform=[layer])
    kinds = [f"self_attn.{kind}_proj" for kind in "kqvo"] + ["mlp.steps.0", "mlp.steps.2"]
    assert sorted(shared.wrapped) == sorted(f"model.layers.{layer}.{kind}" for kind in kinds)
    save_adapter(shared, "a", tmp_path, base="tiny")
    theirs = peft.PeftModel.from_pretrained(model(), tmp_path).eval()
    sequence = tokens(7)[0]
    with torch.no_grad():
        torch.testing.assert_close(logits(shared, sequence), theirs(input_ids=torch.tensor([sequence])).logits[0])


def test_layers_that_share_more_than_hidden_states_have_no_trunk():
    shared_keys = SharedModel(model_of(Gemma4TextConfig(num_kv_shared_layers=10)))
    plain = SharedModel(model_of(Gemma4TextConfig()))
    for shared in (shared_keys, plain):
        check_architecture(shared)
        last = len(shared.decoder_layers) - 1
        shared.add_adapter("a", LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[last]))
    assert not shared_keys.serves_trunk and shared_keys.trunk_depth == 0
    assert plain.serves_trunk and plain.trunk_depth == len(plain.decoder_layers) - 1 == 1
