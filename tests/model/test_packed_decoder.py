"""The packed decoder gives the hidden states of transformers' modules, for every architecture that it serves."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlhf_fast.model import packed_decoder
from rlhf_fast.model.attention import DecodeStep, KVCache, PackedSequences
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.packed_decoder import ARCHITECTURES, PackedDecoder, decoder, unserved
from rlhf_fast.model.shared import SharedModel
from rlhf_kernels import extension
from rlhf_kernels.extension import MISSING, native
from tests.model_cases import CONFIGS, tiny_model, tokens

LEVELS = [] if MISSING else native.levels()
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LENGTHS = [12, 7, 10, 1]
needs_extension = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


def adapted(architecture: str, dtype: torch.dtype = torch.float32, targets: str | list[str] = "all-linear"):
    """A model with an adapter that matters, its weights those of bf16 whatever the dtype."""
    shared = SharedModel(tiny_model(architecture).bfloat16().to(dtype))
    torch.manual_seed(1)
    shared.add_adapter("policy", LoraConfig(r=3, lora_alpha=6, target_modules=targets))
    for name, parameter in shared.named_parameters("policy"):
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return shared


@torch.no_grad()
def decoded(shared: SharedModel, adapter: str | None, decode, rows: int = 4) -> Tensor:
    """(steps, rows, H): hidden states of five steps after prompts of different lengths."""
    lengths = [LENGTHS[i % 4] for i in range(rows)]
    cache = KVCache(rows, 20)
    prompts = Packed.from_sequences(tokens(*lengths))
    shared.prefill(prompts.tokens, PackedSequences(prompts.cu_seqlens, cache), adapter)
    out = []
    for step in range(5):
        new = torch.tensor([(7 * step + 3 * row + 5) % 97 for row in range(rows)])
        out.append(decode(new, DecodeStep(cache, torch.tensor(lengths) + step, max(lengths) + step)))
    return torch.stack(out)


@needs_extension
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("adapter", [None, "policy"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_those_of_the_modules(architecture, adapter, level, monkeypatch):
    monkeypatch.setattr(extension, "LEVEL", level)
    shared = adapted(architecture)
    expected = decoded(shared, adapter, lambda t, step: shared.decode(t, step, adapter))
    got = decoded(shared, adapter, PackedDecoder(shared, adapter, 20))
    torch.testing.assert_close(got, expected, atol=5e-6, rtol=1e-5)
    if adapter is not None:
        assert (got - decoded(shared, None, PackedDecoder(shared, None, 20))).abs().max() > 0.1


@needs_extension
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_bf16_is_as_near_to_the_exact_states_as_the_modules_are(architecture, level, monkeypatch):
    monkeypatch.setattr(extension, "LEVEL", level)
    exact = adapted(architecture)
    exact = decoded(exact, "policy", lambda t, step: exact.decode(t, step, "policy"))
    half = adapted(architecture, torch.bfloat16)
    modules = decoded(half, "policy", lambda t, step: half.decode(t, step, "policy")).float()
    got = decoded(half, "policy", PackedDecoder(half, "policy", 20)).float()
    assert (got - exact).square().mean() <= (modules - exact).square().mean()
    assert (got - exact).abs().max() <= 2 * (modules - exact).abs().max()


@needs_extension
@pytest.mark.parametrize("rows", [1, 5, 8, 9, 16, 33, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_rows_gives_each_row_the_same(rows, dtype):
    shared = adapted("qwen3", dtype, ["q_proj", "v_proj", "down_proj"])
    decode = PackedDecoder(shared, "policy", 20)
    assert torch.equal(decoded(shared, "policy", decode, rows)[:, :4], decoded(shared, "policy", decode)[:, :rows])


@needs_extension
@torch.no_grad()
def test_an_update_of_the_weights_does_not_reach_a_packed_copy():
    shared = adapted("llama")
    step = DecodeStep(KVCache(1, 8), torch.tensor([3]), 3)
    shared.prefill(torch.tensor(tokens(3)[0]), PackedSequences([0, 3], step.cache), "policy")
    new = torch.tensor([5])
    decode = PackedDecoder(shared, "policy", 8)
    before = decode(new, step)
    shared.wrapped["model.layers.0.mlp.up_proj"].base.weight.data.mul_(2)
    shared.parameters("policy")[1].data.mul_(2)
    assert torch.equal(decode(new, step), before)
    assert (PackedDecoder(shared, "policy", 8)(new, step) - before).abs().max() > 1e-2


@needs_extension
def test_more_tokens_than_the_decoder_was_made_for_are_refused():
    shared = adapted("llama")
    with pytest.raises(ValueError, match="16 tokens, and the decoder was made for 16"):
        decoded(shared, None, PackedDecoder(shared, None, 16))


@pytest.mark.parametrize(
    ("architecture", "change", "dtype", "reason"),
    [
        ("gpt2", {}, torch.float32, "architecture is gpt2"),
        ("gemma2", {}, torch.float32, "architecture is gemma2"),
        ("llama", {"hidden_act": "gelu"}, torch.float32, "activation is gelu"),
        ("llama", {}, torch.float16, "float16"),
        ("llama", {"rope_parameters": DYNAMIC}, torch.float32, "rotary"),
    ],
)  # fmt: skip
def test_what_is_not_served_decodes_through_the_modules_and_says_why_once(architecture, change, dtype, reason, caplog):
    packed_decoder._log_once.cache_clear()
    config = copy.deepcopy(CONFIGS[architecture])
    config.update(change)
    shared = SharedModel(AutoModelForCausalLM.from_config(config).to(dtype))
    with caplog.at_level(logging.WARNING):
        assert not isinstance(decoder(shared, None, 20), PackedDecoder)
        decode = decoder(shared, None, 20)
    assert len(caplog.records) == 1 and "through transformers" in caplog.text
    caplog.clear()
    if dtype == torch.float32:
        assert torch.equal(
            decoded(shared, None, decode), decoded(shared, None, lambda t, step: shared.decode(t, step, None))
        )
    if MISSING is None:
        assert reason in (unserved(shared) or "")


@needs_extension
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_served_architectures_are_served(architecture):
    assert unserved(SharedModel(tiny_model(architecture))) is None


@needs_extension
def test_another_backend_in_the_environment_turns_it_off(monkeypatch):
    shared = adapted("llama")
    assert unserved(shared) is None
    monkeypatch.setenv("RLHF_FAST_BACKEND", "reference")
    assert unserved(shared) == "RLHF_FAST_BACKEND is 'reference'"
