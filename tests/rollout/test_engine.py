"""The engine's batches: who is prefilled, who shares a prompt, who waits, and how much the cache may take."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch

from rlhf_fast.model.attention import PackedSequences
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import GB, Engine, Response, _announce, bytes_per_token, generate, rows_that_fit
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.memory import container_room, free_bytes
from tests.model_cases import ARCHITECTURES, tiny_model, tokens

CPU = torch.device("cpu")
SERVED_EITHER_WAY = ("llama", "mistral", "gemma2", "gpt2")  # two through the packed decoder, two through the modules


def watched(monkeypatch) -> tuple[list[list[int]], list[int]]:
    """Lengths of the prompts of every prefill, and rows of every decode step, as they happen."""
    prefills: list[list[int]] = []
    steps: list[int] = []
    prefill, step = Engine.prefill, Engine._decode

    def watched_prefill(self, requests, first_row):
        prefills.append([len(self.prompts[request]) for request in requests])
        return prefill(self, requests, first_row)

    def watched_step(self):
        assert len(self.requests) == self.capacity or not self.waiting  # no row is free while a request waits
        steps.append(len(self.requests))
        step(self)

    monkeypatch.setattr(Engine, "prefill", watched_prefill)
    monkeypatch.setattr(Engine, "_decode", watched_step)
    return prefills, steps


def alone(policy: Policy, prompts: list[list[int]], limits: list[int], stops: tuple[int, ...] = ()) -> list[Response]:
    """Each request in a rollout of its own."""
    return [
        generate(policy, [prompt], Sampling(limit, stops), seeds=[i])[0]
        for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def same(found: list[Response], expected: list[Response]) -> bool:
    close = all(
        torch.allclose(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=1e-5)
        for a, b in zip(found, expected, strict=True)
    )
    return close and [(r.tokens, r.finished) for r in found] == [(r.tokens, r.finished) for r in expected]


@pytest.mark.parametrize("architecture", SERVED_EITHER_WAY)
def test_equal_prompts_are_prefilled_once_and_sampled_as_if_each_were(architecture, monkeypatch):
    policy = Policy(SharedModel(tiny_model(architecture)), None)
    short, long = tokens(5, 9)
    prompts = [short, long, short, short, long, short]
    expected = alone(policy, prompts, [10] * 6, (7,))
    assert len({tuple(r.tokens) for r in expected}) == 6
    prefills, _ = watched(monkeypatch)
    assert same(generate(policy, prompts, Sampling(10, (7,)), seeds=list(range(6))), expected)
    assert prefills == [[5, 9]]


def test_a_waiting_request_copies_its_prompt_from_a_row_that_lives_and_only_then(monkeypatch):
    policy = Policy(SharedModel(tiny_model()), None)
    short, long = tokens(4, 8)
    prompts, limits = [short, long, short, short, long, short], [2, 9, 3, 2, 2, 2]
    expected = alone(policy, prompts, limits)
    prefills, steps = watched(monkeypatch)
    found = generate(policy, prompts, Sampling(limits, ()), seeds=list(range(6)), max_batch=2)
    assert same(found, expected)
    # `short` has left whenever it is wanted again; `long` lives on for the fifth request, which copies it.
    assert prefills == [[4, 8], [4], [4], [4]]
    assert steps == [2] * 6 + [1] * 2  # the second request needs two steps more than the others together


def test_rows_of_very_different_lengths_leave_and_enter_within_the_token_budget(monkeypatch):
    policy = Policy(SharedModel(tiny_model()), None)
    lengths, limits = [1, 3, 30, 25, 2, 28, 4, 1, 12], [20, 1, 2, 30, 1, 3, 25, 7, 9]
    prompts = tokens(*lengths)
    expected = alone(policy, prompts, limits)
    assert [len(r.tokens) for r in expected] == limits
    prefills, steps = watched(monkeypatch)
    found = generate(policy, prompts, Sampling(limits, ()), seeds=list(range(9)), max_batch=3, max_tokens=16)
    assert same(found, expected)
    assert sorted(n for batch in prefills for n in batch) == sorted(lengths)
    assert prefills[:2] == [[1, 3], [30]] and all(len(batch) == 1 or sum(batch) <= 16 for batch in prefills)
    assert sum(steps) == sum(limits) - len(limits)  # a first token comes from the prefill
    assert max(steps) == 3


def test_each_request_may_have_a_limit_of_its_own():
    policy = Policy(SharedModel(tiny_model()), None)
    responses = generate(policy, tokens(3, 3, 3), Sampling([1, 5, 3], ()), seeds=[0, 1, 2])
    assert [len(r.tokens) for r in responses] == [1, 5, 3] and not any(r.finished for r in responses)
    generate(policy, tokens(60, 3), Sampling((4, 61), ()), seeds=[0, 1])
    with pytest.raises(UsageError, match="prompt 0 has 60 tokens and the response up to 5"):
        generate(policy, tokens(60, 3), Sampling((5, 4), ()), seeds=[0, 1])
    with pytest.raises(UsageError, match="has 2 numbers for 3 prompts"):
        generate(policy, tokens(3, 3, 3), Sampling([1, 5], ()), seeds=[0, 1, 2])
    with pytest.raises(UsageError, match="at least 1"):
        Sampling([3, 0], ())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_bytes_of_the_cache_are_known_before_it_is_made(architecture):
    policy = Policy(SharedModel(tiny_model(architecture).bfloat16()), None)
    engine = Engine(policy, tokens(4, 6), Sampling(3, ()), [0, 1], max_batch=2, max_tokens=100)
    engine.run()
    assert engine.cache.nbytes() == 2 * (6 + 3) * bytes_per_token(policy.model)


def test_a_token_takes_two_numbers_a_layer_head_and_dimension():
    assert bytes_per_token(SharedModel(tiny_model("llama"))) == 2 * 2 * 2 * 8 * 4  # layers, kv heads, head_dim, fp32


def test_rows_are_as_many_as_fit_and_fewer_are_announced(caplog):
    model = SharedModel(tiny_model())
    row = 9 * bytes_per_token(model) / GB
    _announce.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert rows_that_fit(model, 9, 4, 4.1 * row) == 4 and not caplog.records
        assert rows_that_fit(model, 9, 4, 3.9 * row) == 3
    assert "3 sequences are decoded together instead of 4" in caplog.text and "raise max_kv_cache_gb" in caplog.text
    with pytest.raises(UsageError, match=r"one sequence of up to 9 tokens take .* Lower response_length"):
        rows_that_fit(model, 9, 4, 0.9 * row)


def test_half_of_the_free_memory_is_the_bound_by_default(monkeypatch):
    model = SharedModel(tiny_model())
    monkeypatch.setattr("rlhf_fast.rollout.engine.free_bytes", lambda device: 2 * 3 * 9 * bytes_per_token(model))
    assert rows_that_fit(model, 9, 5) == 3


def test_fewer_rows_give_the_same_responses(monkeypatch):
    policy = Policy(SharedModel(tiny_model()), None)
    prompts = tokens(4, 9, 2, 6)
    expected = alone(policy, prompts, [6] * 4)
    _, steps = watched(monkeypatch)
    two_rows = 2.5 * 15 * bytes_per_token(policy.model) / GB
    found = generate(policy, prompts, Sampling(6, ()), seeds=[0, 1, 2, 3], max_kv_cache_gb=two_rows)
    assert same(found, expected) and max(steps) == 2


def test_a_copied_prompt_is_that_of_the_source_and_no_more_is_touched():
    shared = SharedModel(tiny_model())
    engine = Engine(Policy(shared, None), tokens(5, 4), Sampling(3, ()), [0, 1], max_batch=2, max_tokens=100)
    cache = engine.cache
    shared.prefill(torch.tensor(engine.prompts[0] + engine.prompts[1]), PackedSequences([0, 5, 9], cache), None)
    before = {layer: keys.clone() for layer, keys in cache.keys.items()}
    cache.copy(0, 1, 3)
    for layer, keys in cache.keys.items():
        assert torch.equal(keys[1, :, :3], before[layer][0, :, :3])
        assert torch.equal(keys[1, :, 3:], before[layer][1, :, 3:]) and torch.equal(keys[0], before[layer][0])


def test_a_container_leaves_its_limit_less_what_is_used_but_for_the_file_cache(tmp_path):
    assert container_room(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert container_room(tmp_path) == 450
    (tmp_path / "memory.max").write_text("max\n")
    assert container_room(tmp_path) is None
    assert 0 < free_bytes(CPU) < 1 << 50


@pytest.mark.parametrize("architecture", SERVED_EITHER_WAY)
def test_cache_and_weights_of_a_rollout_are_gone_with_it(architecture, monkeypatch):
    """By reference counts alone: the garbage collector may come only after the update's peak."""
    held = []
    monkeypatch.setattr(Engine, "run", lambda self, run=Engine.run: (held.append(weakref.ref(self.cache)), run(self)))
    policy = Policy(SharedModel(tiny_model(architecture)), None)
    gc.collect()
    gc.disable()
    try:
        assert [len(r.tokens) for r in generate(policy, tokens(3, 5), Sampling(4, ()), seeds=[0, 1])] == [4, 4]
        assert [cache() for cache in held] == [None]
    finally:
        gc.enable()
