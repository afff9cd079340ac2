"""Decoding against the cache gives the hidden states of a full forward; what cannot be decoded is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig, CohereConfig, GPTNeoConfig, GptOssConfig, PreTrainedConfig

from rlhf_fast.model.attention import DecodeStep, KVCache, PackedSequences
from rlhf_fast.model.load import check_architecture
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import ARCHITECTURES, CONFIGS, tiny_model, tokens

SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def own_hidden(architecture: str, sequence: list[int]) -> Tensor:
    """(T, H) through transformers' own eager attention."""
    return tiny_model(architecture)(input_ids=torch.tensor([sequence]), output_hidden_states=True).hidden_states[-1][0]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_decoded_hidden_states_equal_a_full_forward_when_a_sequence_leaves_and_another_takes_its_row(architecture):
    first, second, third = tokens(12, 7, 10)
    expected = [own_hidden(architecture, sequence) for sequence in (first, second, third)]
    shared = SharedModel(tiny_model(architecture))
    cache = KVCache(3, 12)

    prompts = Packed.from_sequences([first[:5], second[:1], third[:8]])
    prefilled = shared.prefill(prompts.tokens, PackedSequences(prompts.cu_seqlens, cache), None)
    torch.testing.assert_close(prefilled[5:6], expected[1][:1], atol=1e-5, rtol=1e-5)

    def step(rows: list[tuple[int, int]]) -> None:
        """Row b of the cache holds the first n tokens of sequence s; feed the next one."""
        lengths = [n for _, n in rows]
        new = torch.tensor([(first, second, third)[s][n] for s, n in rows])
        out = shared.decode(new, DecodeStep(cache, torch.tensor(lengths), max(lengths)), None)
        torch.testing.assert_close(out, torch.stack([expected[s][n] for s, n in rows]), atol=1e-5, rtol=1e-5)

    step([(0, 5), (1, 1), (2, 8)])
    step([(0, 6), (1, 2), (2, 9)])
    cache.copy(2, 0, 10)  # the first leaves, the third takes its row
    shared.prefill(torch.tensor(first[:7]), PackedSequences([0, 7], cache, first_row=2), None)
    step([(2, 9), (1, 3), (0, 7)])
    cache.copy(2, 0, 8)  # the third leaves
    for n in range(4):
        step([(0, 8 + n), (1, 4 + n)] if n < 3 else [(0, 8 + n)])


def test_the_cache_holds_keys_and_values_of_each_layer_for_its_capacity():
    cache = KVCache(3, 12)
    shared = SharedModel(tiny_model("llama"))
    shared.prefill(torch.tensor(tokens(4)[0]), PackedSequences([0, 4], cache), None)
    assert cache.nbytes() == 2 * 2 * 3 * 2 * 12 * 8 * 4  # keys and values, layers, rows, kv heads, tokens, dim, fp32


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_architectures_that_are_served_pass_the_check_made_at_loading(architecture):
    shared = SharedModel(tiny_model(architecture))
    check_architecture(shared)
    assert shared.base.config._attn_implementation == "rlhf_fast"  # and the check leaves it in place


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPTNeoConfig(**SMALL, attention_types=[[["global"], 2]]), "0 of its 2 layers"),  # its own attention: no cache
        (BloomConfig(**SMALL), "0 of its 2 layers"),  # position from the attention mask
        (CohereConfig(**SMALL, logit_scale=0.1), "its head scales its logits"),
        (
            GptOssConfig(**SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1),
            "packed logits differ from its own",
        ),  # sinks
    ],
)
def test_an_architecture_that_would_be_wrong_is_refused(config: PreTrainedConfig, message: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    with pytest.raises(UsageError, match=message):
        check_architecture(SharedModel(model))


def test_facts_of_the_base_are_read_from_its_config():
    gpt2, gemma2 = SharedModel(tiny_model("gpt2")), SharedModel(tiny_model("gemma2"))
    assert (gpt2.hidden_size, gpt2.max_length, gpt2.softcap) == (32, 64, None)
    assert gemma2.softcap == CONFIGS["gemma2"].final_logit_softcapping == 30.0
    assert gpt2.lm_head[0].shape == (97, 32) and gpt2.lm_head[1] is None
