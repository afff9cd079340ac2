"""What the tracer counts, and that few layers stand for many."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config

from rlhf_fast.profiling.trace import Allocated, Sequences, Traced, fake_tensors, trace
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.plan_model import Facts
from tests.model_cases import CONFIGS

LOAD = Sequences(((40, 24),) * 6 + ((70, 30), (9, 50)))


def test_bytes_are_those_alive_at_once_and_views_are_nothing_new():
    with fake_tensors():
        before = torch.empty(1000)
        with Allocated() as allocated:
            a = before + 1  # 4000
            b = a.view(10, 100).t()
            assert allocated.live == 4000
            c = before.view(10, 100) @ b  # 400 more; what was there before is not counted
            del a, b
            assert (allocated.live, allocated.peak) == (400, 4400)
            d = torch.cat([c, c])  # 800
            del c, d
        assert (allocated.live, allocated.peak) == (0, 4400)


def test_the_update_of_one_linear_layer_by_hand():
    """y = W x keeps x; the backward makes a gradient of W and none of x."""
    with fake_tensors():
        weight = torch.nn.Parameter(torch.empty(50, 20))
        with Allocated() as allocated:
            x = torch.empty(7, 20)  # 560 bytes
            loss = torch.nn.functional.linear(x, weight).sum()  # (7, 50): 1400, gone after the sum; 4
            del x
            assert (allocated.live, allocated.peak) == (560 + 4, 560 + 1400 + 4)
            loss.backward()
            del loss
            assert allocated.live == 4 * 50 * 20


def deeper(architecture: str, layers: int, folder: Path) -> str:
    config = copy.deepcopy(CONFIGS[architecture])
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types * (layers // len(config.layer_types))
    config.num_hidden_layers = layers
    config.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("architecture", "change"),
    [("llama", {}), ("gpt2", {"activation_checkpointing": True}), ("qwen3", {"use_peft": False, "dtype": "float32"})],
)
def test_a_trace_of_few_layers_and_small_loads_gives_the_whole_model(architecture, change, tmp_path):
    model = deeper(architecture, 8, tmp_path)
    facts = Facts(PPORunConfig(sft_model_path=model, **change), torch.float32)
    assert facts.layers == 8
    with fake_tensors():
        exact = trace(facts.make_roles(), LOAD)
    for name in Traced._fields:
        assert facts.bytes_of(name, LOAD) == pytest.approx(getattr(exact, name), rel=0.05), name


@pytest.mark.parametrize(
    "load", [Sequences(((4, 3),) * 12), Sequences(((180, 64),) * 2 + ((300, 10),))], ids=["short", "long"]
)
def test_scores_that_attention_stores_are_of_one_sequence_at_a_time(load, gemma2):
    """Of short sequences the layers beside attention hold the most, of long ones attention itself."""
    with fake_tensors():
        exact = trace(gemma2.make_roles(), load)
    for name in Traced._fields:
        assert gemma2.bytes_of(name, load) == pytest.approx(getattr(exact, name), rel=0.05, abs=5e4), name


def test_a_prefill_of_two_prompts_holds_the_scores_of_one(gemma2):
    """4 heads in float32: the scores, the mask and what becomes of them. Twice the length is four times as much."""
    one, two, longer = (
        gemma2.bytes_of("prefill", Sequences(((n, 0),) * k)) for n, k in ((4000, 1), (4000, 2), (8000, 1))
    )
    scores = 4 * 4000**2 * 4
    assert 2 * scores < one < 5 * scores
    assert two < 1.05 * one and longer == pytest.approx(4 * one, rel=0.05)


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory) -> Facts:
    folder = tmp_path_factory.mktemp("gemma2")
    Gemma2Config(
        vocab_size=97, hidden_size=64, intermediate_size=512, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=4,
    ).save_pretrained(folder)  # fmt: skip
    return Facts(PPORunConfig(sft_model_path=str(folder)), torch.float32)


def test_adapters_on_the_last_layers_keep_the_activations_of_these_alone(tmp_path):
    model = deeper("llama", 6, tmp_path)
    every, last = (
        Facts(PPORunConfig(sft_model_path=model, lora_layers=layers), torch.float32) for layers in (None, [5])
    )
    assert (every.trunk_depth, last.trunk_depth) == (0, 5)
    assert 0.1 < last.bytes_of("forward", LOAD) / every.bytes_of("forward", LOAD) < 0.3  # 1 of 6 layers
