"""Rollouts on a CUDA device: steps are graphs, and in float32 the tokens are those of the CPU."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.lora import side_by_side
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import Engine, generate
from rlhf_fast.rollout.sampling import Sampling, StopStrings
from tests.model_cases import ARCHITECTURES, tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def policy(architecture: str, device: str, dtype=torch.float32) -> Policy:
    model = tiny_model(architecture).to(dtype)
    shared = SharedModel(model)
    shared.add_adapter("policy", LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(1)
    for parameter in shared.parameters("policy"):
        torch.nn.init.normal_(parameter, std=0.1)
    shared.base.to(device)
    join_weights(shared.base)
    return Policy(shared, "policy")


def test_weights_are_joined_and_what_they_were_is_given_back():
    """A layer has 4 weights of 16 MiB and 3 of 32 MiB: what was freed serves none of the joined ones, of 48 and 64."""
    sizes = {"hidden_size": 2048, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 3}
    with torch.device("cuda"):
        shared = SharedModel(AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=97), dtype=torch.float32))
    torch.cuda.empty_cache()
    allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    join_weights(shared.base)
    for layer in shared.decoder_layers:
        attention, mlp = layer.self_attn, layer.mlp
        for group in ([attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]):
            assert side_by_side([linear.weight for linear in group]) is not None
    assert torch.cuda.memory_allocated() <= allocated
    assert torch.cuda.memory_reserved() <= reserved + (64 << 20)  # all of them: 336 MiB


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokens_are_those_of_the_cpu_and_steps_are_graphs(architecture):
    a, b, c = tokens(4, 7, 2)
    prompts, limits = [a, b, a, c, a, b, c, a, b], [9, 3, 30, 1, 7, 30, 5, 10, 2]
    strings = StopStrings(tiny_tokenizer(), ["w40"])
    sampling = Sampling(limits, (5, 11), stop_strings=strings)
    expected = generate(policy(architecture, "cpu"), prompts, sampling, seeds=list(range(9)), max_batch=3)
    with torch.no_grad():
        engine = Engine(policy(architecture, "cuda"), prompts, sampling, list(range(9)), 3, 100)
        engine.run()
    assert engine.stepper.refused is None and engine.stepper.graphs
    assert [(r.tokens, r.finished) for r in engine.responses] == [(r.tokens, r.finished) for r in expected]
    for one, other in zip(engine.responses, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_sampled_log_probs_are_near_those_of_a_forward_in_bfloat16(architecture):
    """Decode and training round in different places; a wrong position or mask would be off by nats."""
    from rlhf_fast.model.packed import Packed

    role, prompts = policy(architecture, "cuda", torch.bfloat16), tokens(4, 7, 12)
    responses = generate(role, prompts, Sampling(40, ()), seeds=[0, 1, 2])
    sequences = [p + r.tokens for p, r in zip(prompts, responses, strict=True)]
    labels = [[-100] * len(p) + r.tokens for p, r in zip(prompts, responses, strict=True)]
    with torch.no_grad():
        again = role.logprobs(Packed.from_sequences(sequences, labels, "cuda")).logprobs
    sampled = torch.tensor([x for r in responses for x in r.logprobs])
    assert float((again.cpu() - sampled).abs().mean()) < 0.1


@pytest.mark.parametrize("filters", [{"top_k": 9}, {"top_p": 0.8}, {"top_k": 20, "top_p": 0.9}])
def test_filtered_tokens_are_those_of_the_cpu_and_steps_are_graphs(filters):
    prompts, seeds = tokens(4, 7, 2), [0, 1, 2]
    sampling = Sampling(20, (5,), **filters)
    expected = generate(policy("llama", "cpu"), prompts, sampling, seeds=seeds)
    with torch.no_grad():
        engine = Engine(policy("llama", "cuda"), prompts, sampling, seeds, 3, 100)
        engine.run()
    assert engine.stepper.refused is None and engine.stepper.graphs
    assert [(r.tokens, r.finished) for r in engine.responses] == [(r.tokens, r.finished) for r in expected]
