"""Decode steps that the host looks at only now and then, with idle rows beside the live ones, as on a GPU."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import Engine, Response, generate
from rlhf_fast.rollout.sampling import Sampling, StopStrings
from rlhf_fast.rollout.step import Rows, Stepper, rows_of_a_graph
from tests.model_cases import ARCHITECTURES, tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer
from tests.waits import Waits

LIMITS = [9, 3, 12, 1, 7, 12, 5, 10, 2]


def adapted(architecture: str, targets: str | list[str] = "all-linear") -> Policy:
    torch.manual_seed(2)
    shared = SharedModel(tiny_model(architecture))
    shared.add_adapter("policy", LoraConfig(r=4, target_modules=targets))
    for parameter in shared.parameters("policy"):
        torch.nn.init.normal_(parameter, std=0.1)
    return Policy(shared, "policy")


def rarely_read(monkeypatch, policy, prompts, sampling, *, batch: int, unread: int) -> list[Response]:
    """As `generate`, read every `unread` steps, each step of as many rows as a graph would have."""
    step = Stepper.run
    monkeypatch.setattr(
        Stepper, "run", lambda self, of, n, longest: step(self, of, rows_of_a_graph(n, self.capacity), longest)
    )
    engine = Engine(policy, prompts, sampling, list(range(len(prompts))), batch, 100, unread=unread)
    with torch.no_grad():
        engine.run()
    monkeypatch.setattr(Stepper, "run", step)
    return engine.responses


@pytest.mark.parametrize("batch, unread", [(3, 4), (9, 8), (2, 1)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tokens_are_those_of_an_engine_that_reads_each(architecture, batch, unread, monkeypatch):
    """Requests that wait, equal prompts, limits of their own, stop tokens."""
    policy, (a, b, c) = adapted(architecture), tokens(4, 7, 2)
    prompts = [a, b, a, c, a, b, c, a, b]
    sampling = Sampling(LIMITS, (5, 11, 40))
    expected = generate(policy, prompts, sampling, seeds=list(range(9)), max_batch=batch)
    found = rarely_read(monkeypatch, policy, prompts, sampling, batch=batch, unread=unread)
    assert [(r.tokens, r.finished) for r in found] == [(r.tokens, r.finished) for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert {len(r.tokens) for r in found} > {1, 2}


def test_what_is_sampled_beyond_a_stop_string_is_dropped(monkeypatch):
    policy, prompts = adapted("llama"), tokens(3, 5, 4, 6)
    whole = generate(policy, prompts, Sampling(12, ()), seeds=[0, 1, 2, 3])
    word = tiny_tokenizer().decode(whole[1].tokens[4:5])
    sampling = Sampling(12, (), stop_strings=StopStrings(tiny_tokenizer(), [word]))
    expected = generate(policy, prompts, sampling, seeds=[0, 1, 2, 3])
    assert expected[1].finished and len(expected[1].tokens) <= 5
    found = rarely_read(monkeypatch, policy, prompts, sampling, batch=2, unread=8)
    assert [(r.tokens, r.finished) for r in found] == [(r.tokens, r.finished) for r in expected]


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj", "down_proj"], ["up_proj"]])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gpt2"])
def test_adapters_that_are_cast_once_give_the_same_tokens(architecture, targets, joined, monkeypatch):
    """As on a GPU: through the model's modules, with one product for the adapters of q, k and v, and one for their
    weights where these lie side by side."""
    if architecture == "gpt2" and targets != "all-linear":
        pytest.skip("its layers have other names")
    monkeypatch.setenv("RLHF_FAST_BACKEND", "reference")
    policy, prompts = adapted(architecture, targets), tokens(4, 7, 2)
    expected = generate(policy, prompts, Sampling(9, (5,)), seeds=[0, 1, 2])
    if joined:
        join_weights(policy.model.base, on="cpu")
    with policy.model.routing.keep_factors():
        found = generate(policy, prompts, Sampling(9, (5,)), seeds=[0, 1, 2])
        products = count_products(policy, prompts)
    assert [r.tokens for r in found] == [r.tokens for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    without = generate(Policy(policy.model, None), prompts, Sampling(9, (5,)), seeds=[0, 1, 2])
    assert without[0].logprobs != pytest.approx(expected[0].logprobs, abs=1e-3)
    bare = count_products(Policy(policy.model, None), prompts, kept=True)
    if architecture == "llama" and targets == "all-linear":
        # a layer: q, k, v, o, gate, up, down, or qkv, o, gate and up, down; two each for the adapters of four groups
        assert (products, bare) == ((12 * 2, 4 * 2) if joined else (15 * 2, 7 * 2))


@pytest.mark.parametrize("joined", [True, False], ids=["joined", "apart"])
def test_a_base_without_adapters_takes_as_few_products(joined, monkeypatch):
    monkeypatch.setenv("RLHF_FAST_BACKEND", "reference")
    policy = Policy(SharedModel(tiny_model("qwen2"), train_base=not joined), None)
    prompts = tokens(4, 7, 2)
    expected = generate(policy, prompts, Sampling(9, (5,)), seeds=[0, 1, 2])
    if joined:
        join_weights(policy.model.base, on="cpu")
    with policy.model.routing.keep_factors():
        found = generate(policy, prompts, Sampling(9, (5,)), seeds=[0, 1, 2])
        assert count_products(policy, prompts) == (4 * 2 if joined else 7 * 2)
    assert [r.tokens for r in found] == [r.tokens for r in expected]


def count_products(policy: Policy, prompts: list[list[int]], *, kept: bool = False) -> int:
    """Matrix products of a decode step; kept: with the adapters cast once."""
    if kept:
        with policy.model.routing.keep_factors():
            return count_products(policy, prompts)
    engine = Engine(policy, prompts, Sampling(9, (5,)), [0, 1, 2], 3, 100, unread=4)
    with torch.no_grad():
        engine._admit()
        with Products() as products:
            engine._step(3, 8)
    return products.count


class Products(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function._schema.name.removeprefix("aten::") in ("mm", "addmm", "addmm_")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("filters", [{}, {"top_k": 5, "top_p": 0.9}], ids=["all tokens", "some"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_a_step_waits_for_nothing(architecture, filters):
    """The packed decoder and transformers' modules alike."""
    policy = adapted(architecture)
    engine = Engine(policy, tokens(3, 5), Sampling(6, (5,), **filters), [0, 1], 2, 100, unread=3)
    with torch.no_grad():
        engine._admit()
        with Waits() as waits:
            engine._step(2, 5)
    assert waits.found == [] and engine.rows.line.tolist() == [1]


def test_a_step_that_cannot_be_captured_runs_without_a_graph_and_says_why_once(monkeypatch, caplog):
    """As attention without a kernel refuses it, in the midst of a capture."""
    seen: list[tuple[int, int]] = []

    def no_graph(self, step, n, longest):
        raise RuntimeError("decode attention of heads of 80 has no kernel here\nand a second line")

    monkeypatch.setattr(Stepper, "_graph", no_graph)
    stepper = Stepper(Rows(4, 1, (), torch.device("cpu")), refused=None)
    for longest in (5, 6):
        stepper.run(lambda n, longest: seen.append((n, longest)), 3, longest)
    assert seen == [(3, 5), (3, 6)]
    (record,) = caplog.records
    assert record.getMessage().endswith("capturing it failed: decode attention of heads of 80 has no kernel here")


def test_attention_without_a_kernel_refuses_to_be_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    decode = import_module("rlhf_kernels.decode_attention")
    on_gpu = SimpleNamespace(is_cuda=True, shape=(1, 4, 80), dtype=torch.float32)
    nothing = torch.empty(0)
    with pytest.raises(RuntimeError, match=r"heads of 80 torch\.float32 has no kernel here"):
        decode._to_the_longest(decode.Arguments(on_gpu, nothing, nothing, nothing, 1.0, None, None), 5)


def test_a_graph_has_few_sizes_and_never_more_rows_than_the_cache():
    assert [rows_of_a_graph(n, 256) for n in (1, 8, 9, 33, 64, 65, 200, 256)] == [8, 8, 16, 64, 64, 128, 256, 256]
    assert [rows_of_a_graph(n, 20) for n in (1, 9, 17, 20)] == [8, 16, 20, 20]
    assert rows_of_a_graph(2, 3) == 3
