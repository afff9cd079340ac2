"""An architecture that is not served exactly is refused when it is opened, with the reason; nothing else changes."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    DeepseekV3Config,
    DiffLlamaConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.models.llama.modeling_llama import LlamaMLP

from rlhf_fast.model import attention, check, fused_blocks
from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.small_copy import small_config, stated_thresholds
from rlhf_fast.runtime.errors import UsageError
from rlhf_kernels import decode_attention, packed_attention
from tests.model_cases import tiny_model

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}


def shared_of(config: PreTrainedConfig) -> SharedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return SharedModel(model)


def ignore_windows(monkeypatch) -> None:
    monkeypatch.setattr(attention, "packed_attention", lambda *a, window, **k: packed_attention(*a, window=None, **k))


@pytest.mark.parametrize(
    "config",
    [MistralConfig(**SIZES, sliding_window=256), Gemma2Config(**SIZES, head_dim=8, sliding_window=300)],
    ids=["mistral", "gemma2"],
)
def test_a_window_that_only_longer_sequences_reach_is_looked_at(config, monkeypatch):
    shared = shared_of(config)
    check_architecture(shared)
    ignore_windows(monkeypatch)
    with pytest.raises(UsageError, match="not supported: packed logits of longer sequences differ from its own"):
        check_architecture(shared)


def test_a_window_that_decoding_ignores_is_seen(monkeypatch):
    shared = shared_of(Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=200))
    check_architecture(shared)
    monkeypatch.setattr(attention, "decode_attention", lambda *a, window, **k: decode_attention(*a, window=None, **k))
    with pytest.raises(UsageError, match="logits of decoding with a key-value cache differ from its own"):
        check_architecture(shared)


class MaskOnly(MistralForCausalLM):
    """A model whose window is in the attention mask only, which a packed forward has none of."""

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.config = copy.deepcopy(config)
            layer.self_attn.config.sliding_window = None


def test_architectures_that_a_few_tokens_do_not_tell_are_refused():
    window = SharedModel(MaskOnly(MistralConfig(**SIZES, sliding_window=100)).eval())
    state = shared_of(DiffLlamaConfig(**SIZES))
    for shared, what in ((window, "packed logits of longer sequences"), (state, "logits of decoding with a key-value")):
        check._check_few_tokens(shared)
        with pytest.raises(UsageError, match=f"not supported: {what}"):
            check_architecture(shared)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CohereConfig(**SIZES, logit_scale=0.25), "its head scales its logits, or changes them in another way"),
        (GraniteConfig(**SIZES, logits_scaling=8.0), "its head scales its logits"),
        (
            GptOssConfig(**SIZES, head_dim=8, num_local_experts=4),
            "packed logits differ from its own",
        ),  # attention sinks
    ],
    ids=["cohere", "granite", "gpt_oss"],
)
def test_a_scale_of_the_head_and_another_attention_have_their_own_reasons(config, reason):
    with pytest.raises(UsageError, match=reason):
        check_architecture(shared_of(config))


class WithArgument(LlamaForCausalLM):
    """A model that its config alone does not make."""

    def __init__(self, config, extra):
        super().__init__(config)
        self.extra = extra


def test_where_no_small_model_can_be_made_a_stated_threshold_is_refused_and_else_it_is_said(caplog):
    check._log_once.cache_clear()
    config = LlamaConfig(**SIZES)
    assert stated_thresholds(config) == []
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        check_architecture(SharedModel(WithArgument(config, 1)))
    assert "WithArgument was checked with six tokens, without adapters and without decoding" in caplog.text
    config.sliding_window = 300
    with pytest.raises(UsageError, match="its config states sliding_window=300, and no small model of its kind"):
        check_architecture(SharedModel(WithArgument(config, 1)))


class Reads(LlamaMLP):
    """Multiplies by a weight that it reads itself: an adapter on that layer would do nothing."""

    def forward(self, x):
        gate = torch.nn.functional.linear(x, self.gate_proj.weight)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))


class Stops(LlamaMLP):
    def forward(self, x):
        if x.shape[-2] > 30:
            raise IndexError("too long for me")
        return super().forward(x)


@pytest.mark.parametrize(("mlp", "reason"), [(Reads, "a forward ended in"), (Stops, "IndexError: too long for me")])
def test_a_forward_that_fails_or_passes_adapters_by_is_refused(mlp, reason):
    class Model(LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.mlp = mlp(config)

    shared = SharedModel(Model(LlamaConfig(**SIZES)).eval())
    with pytest.raises(UsageError, match=f"Model is not supported: .*{reason}.*docs/models.md"):
        check_architecture(shared)


def test_want_of_memory_is_not_taken_for_a_fault_of_the_model(monkeypatch):
    shared = SharedModel(tiny_model())

    def out(*given, **more):
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(check, "_check_small", out)
    with pytest.raises(torch.OutOfMemoryError):
        check_architecture(shared)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_model_can_be_opened_where_gradients_are_off(mode):
    shared = SharedModel(tiny_model())
    with mode():
        check_architecture(shared)
    assert shared.serves_trunk


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_check_leaves_weights_and_random_numbers_alone(architecture):
    shared = SharedModel(tiny_model(architecture))
    before = {name: parameter.clone() for name, parameter in shared.base.named_parameters()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    check_architecture(shared)
    assert torch.equal(torch.rand(4), expected)
    assert all(torch.equal(parameter, before[name]) for name, parameter in shared.base.named_parameters())
    assert not shared.wrapped and not shared.configs


def test_a_small_config_keeps_kinds_and_proportions_and_scales_the_rest():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    small = small_config(
        Gemma3TextConfig(
            num_hidden_layers=30, layer_types=kinds * 5, hidden_size=3840, num_attention_heads=16,
            num_key_value_heads=8, head_dim=256, sliding_window=1024, attn_logit_softcapping=50.0,
        )
    )  # fmt: skip
    assert small.layer_types == ["sliding_attention", "full_attention"] and small.num_hidden_layers == 2
    assert (small.hidden_size, small.head_dim, small.num_attention_heads, small.num_key_value_heads) == (64, 16, 4, 2)
    assert small.sliding_window == 6 and small.attn_logit_softcapping == 50.0

    rope = {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
        "short_factor": [1.0] * 48, "long_factor": [float(i) for i in range(48)],
    }  # fmt: skip
    phi = Phi3Config(hidden_size=3072, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope)
    small = small_config(phi)
    assert small.rope_parameters["original_max_position_embeddings"] == 6
    assert small.rope_parameters["long_factor"] == [0.0, 6.0, 12.0, 18.0, 24.0, 30.0, 36.0, 42.0]  # 8 angles of 16

    moe = small_config(Qwen2MoeConfig(num_hidden_layers=24, mlp_only_layers=[0, 1], num_experts=60))
    assert (moe.num_hidden_layers, moe.mlp_only_layers, moe.num_experts) == (2, [0], 4)  # one dense, one of experts
    assert small_config(GPT2Config()).n_embd == 64 and small_config(GPT2Config()).n_positions == 24


@pytest.mark.parametrize(
    ("config", "share"),
    [
        # experts: gate and up 2 x 16 x 32, down 16 x 32, 4 of each; beside them attention, norms and router
        (Qwen3MoeConfig(**SIZES, **EXPERTS), 4 * (3 * 16 * 32)),
        (MixtralConfig(**SIZES, num_local_experts=8), 8 * (3 * 48 * 32)),
    ],
    ids=["qwen3_moe", "mixtral"],
)
def test_experts_that_adapters_leave_out_are_said_once(config, share, caplog):
    check._log_once.cache_clear()
    shared = shared_of(config)
    layer = sum(p.numel() for p in shared.decoder_layers[0].parameters())
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        check_architecture(shared)
        check_architecture(shared)
    [line] = [r.getMessage() for r in caplog.records if "leave the experts" in r.getMessage()]
    assert f"{share / layer:.0%} of the weights of the decoder layers" in line and type(shared.base).__name__ in line


def test_keys_and_values_are_counted_as_they_are_written():
    # keys 4 heads x (16 + 8), values 4 heads x 32, two layers, four bytes; Qwen3: 2 heads x 8, both
    latent = AutoModelForCausalLM.from_config(small_config(DeepseekV3Config())).eval()
    assert SharedModel(latent).cache_bytes == 2 * 4 * (24 + 32) * 4
    assert SharedModel(tiny_model("qwen3")).cache_bytes == 2 * 2 * (8 + 8) * 4
    assert shared_of(Qwen3Config(**SIZES, head_dim=16)).cache_bytes == 2 * 2 * (16 + 16) * 4


@pytest.mark.parametrize("block", ["_norm", "_feed_forward", "_attention"])
def test_a_fault_of_the_blocks_in_c_is_seen(block, monkeypatch):
    plain = getattr(fused_blocks, block)

    def wrong(*given, **more):
        *before, hidden = given
        return plain(*before, hidden * 1.01 if block != "_norm" else hidden.flip(-1), **more)

    monkeypatch.setattr(fused_blocks, block, wrong)
    with pytest.raises(UsageError, match="packed logits differ"):
        check_architecture(SharedModel(tiny_model("qwen3")))
