"""The fused blocks of the Llama family give what transformers' own modules give, in hidden states and gradients."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from rlhf_fast.model import fused_blocks
from rlhf_fast.model.lora import Route, Routing
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.shared import SharedModel
from rlhf_kernels.op import OPS
from tests.model_cases import tiny_model, tokens

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
FAMILY = ["llama", "mistral", "qwen2", "qwen3"]
ROUTES = ["a", Route(("a", "b", None, "a"), (0, 7, 10, 12, 15))]


def with_adapters(
    architecture: str, dtype: torch.dtype, *, above: int = 0, recompute: bool = False, device: str = "cpu"
) -> SharedModel:
    """Adapters a and b on the decoder layers from `above` on."""
    model = tiny_model(architecture).to(device, dtype)
    shared = SharedModel(model)
    config = copy.deepcopy(LORA)
    if above:
        config.layers_to_transform = list(range(above, len(shared.decoder_layers)))
        config.target_modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        shared.add_adapter(name, config)
        for parameter in shared.parameters(name):
            parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    if recompute:
        shared.checkpoint_activations()
    return shared


def results(shared: SharedModel, route: Route | str) -> list[Tensor]:
    packed = Packed.from_sequences(tokens(7, 3, 5))
    ids = packed.tokens.to(shared.device)
    trunk = shared.trunk_states(ids, packed.cu_seqlens)
    hidden = shared.hidden(ids, packed.cu_seqlens, route, trunk=trunk)
    weights = torch.linspace(-1, 2, hidden.numel(), device=hidden.device).view(hidden.shape)
    (hidden.double() * weights).sum().backward()
    parameters = [p for name in ("a", "b") for p in shared.parameters(name)]
    return [hidden.detach(), *(p.grad for p in parameters if p.grad is not None)]


def generic(monkeypatch, *args, route: Route | str, **kwargs) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_fast.model.shared.fuse_blocks", lambda *_: None)
        patch.setattr(OPS["packed_attention"], "fused_backend", lambda *_: None)
        return results(with_adapters(*args, **kwargs), route)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("route", ROUTES, ids=["one", "groups"])
@pytest.mark.parametrize("architecture", FAMILY)
def test_float32_equals_the_generic_path(architecture, route, above, recompute, monkeypatch):
    expected = generic(monkeypatch, architecture, torch.float32, above=above, route=route)
    got = results(with_adapters(architecture, torch.float32, above=above, recompute=recompute), route)
    assert len(got) == len(expected) > 10
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("route", ROUTES, ids=["one", "groups"])
@pytest.mark.parametrize("architecture", FAMILY)
def test_bfloat16_errs_at_most_twice_as_much_as_the_generic_path(architecture, route, monkeypatch):
    rounded = with_adapters(architecture, torch.bfloat16)
    exact_model = with_adapters(architecture, torch.float64)
    exact_model.base.load_state_dict(rounded.base.state_dict())
    exact = results(exact_model, route)
    plain, got = generic(monkeypatch, architecture, torch.bfloat16, route=route), results(rounded, route)
    error, allowed = (
        sum(((x.double() - right).norm() / right.norm()) ** 2 for x, right in zip(found, exact, strict=True)) ** 0.5
        for found in (got, plain)
    )
    assert error <= 2 * allowed


def test_the_family_runs_fused_and_nothing_else_does(monkeypatch):
    calls = []
    for name in ("rms_norm", "rotary", "swiglu"):
        run = getattr(fused_blocks, name)
        monkeypatch.setattr(fused_blocks, name, lambda *a, n=name, f=run, **k: calls.append(n) or f(*a, **k))
    for architecture in FAMILY:
        calls.clear()
        results(with_adapters(architecture, torch.float32), "a")
        norms = 5 + 4 * (architecture == "qwen3")
        assert [calls.count(n) for n in ("rms_norm", "rotary", "swiglu")] == [norms, 2, 2], architecture
    calls.clear()
    results(with_adapters("gemma", torch.float32), "a")
    assert calls == []


def test_a_copy_of_a_served_model_runs_its_own_weights():
    shared = with_adapters("llama", torch.float32)
    second = SharedModel(copy.deepcopy(shared.base))
    packed = Packed.from_sequences(tokens(7))
    before = second.hidden(packed.tokens, packed.cu_seqlens, None)
    with torch.no_grad():
        for parameter in shared.base.parameters():
            parameter.zero_()
    torch.testing.assert_close(second.hidden(packed.tokens, packed.cu_seqlens, None), before)
    assert before.abs().sum() > 0


@pytest.mark.parametrize(
    ("device", "routed", "runs"),
    [("cpu", True, "fused"), ("cuda", True, "fused"), ("xpu", True, "plain"), ("cuda", False, "plain")],
)
def test_which_forward_runs_on_which_device(device, routed, runs):
    hidden = SimpleNamespace(is_cpu=device == "cpu", is_cuda=device == "cuda")
    routing = Routing()
    routing.current = Route.single(None, 1) if routed else None
    found = fused_blocks._forward(routing, lambda module, x: ("fused", x), None, lambda x: ("plain", x), hidden)
    assert found == (runs, hidden)
