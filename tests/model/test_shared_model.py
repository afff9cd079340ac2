"""Packed forwards, decoding and adapters agree with transformers and PEFT, architecture by architecture."""

from __future__ import annotations

import warnings

import peft
import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from rlhf_fast.model.adapter_files import load_adapter, save_adapter
from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.lora import Route
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy, adapter_critic, sequence_scores
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import ARCHITECTURES, tiny_model, tokens

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def shared_with(*adapters: str, architecture: str = "llama") -> SharedModel:
    """A tiny model with adapters whose B is random, so that each changes the output."""
    shared = SharedModel(tiny_model(architecture))
    for name in adapters:
        shared.add_adapter(name, LORA, head=True)
        for _, parameter in shared.named_parameters(name):
            torch.nn.init.normal_(parameter, std=0.2)
    return shared


def hidden(shared: SharedModel, sequences: list[list[int]], route: Route | str | None) -> Tensor:
    packed = Packed.from_sequences(sequences)
    return shared.hidden(packed.tokens, packed.cu_seqlens, route)


def gradients(shared: SharedModel, name: str) -> list[Tensor]:
    return [p.grad.clone() for p in shared.parameters(name) if p.grad is not None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_logits_equal_each_sequence_alone_through_transformers(architecture):
    sequences = tokens(5, 1, 11, 8)
    untouched = tiny_model(architecture)
    shared = SharedModel(tiny_model(architecture))
    out = hidden(shared, sequences, None) @ shared.lm_head[0].T
    if shared.softcap is not None:
        out = torch.tanh(out / shared.softcap) * shared.softcap
    expected = torch.cat([untouched(input_ids=torch.tensor([s])).logits[0] for s in sequences])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_generation_equals_transformers_with_sequences_leaving_and_entering(architecture):
    prompts = tokens(4, 7, 2, 9, 1)
    shared = SharedModel(tiny_model(architecture))
    out = generate(
        Policy(shared, None), prompts, Sampling(8, (5, 11, 40), 0.0), seeds=[0] * 5, max_batch=2, max_tokens=8
    )
    untouched = tiny_model(architecture)
    for prompt, response in zip(prompts, out, strict=True):
        sequence = list(prompt)
        for _ in range(8):
            sequence.append(int(untouched(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
            if sequence[-1] in (5, 11, 40):
                break
        assert response.tokens == sequence[len(prompt) :]
        assert response.finished == (sequence[-1] in (5, 11, 40))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_opens_a_saved_adapter_with_equal_logits_and_the_other_way_round(architecture, tmp_path):
    shared = shared_with("a", architecture=architecture)
    save_adapter(shared, "a", tmp_path / "ours", base="tiny")
    theirs = peft.PeftModel.from_pretrained(tiny_model(architecture), tmp_path / "ours").eval()
    sequence = tokens(9)
    expected = theirs(input_ids=torch.tensor(sequence), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(hidden(shared, sequence, "a"), expected, atol=1e-5, rtol=1e-5)

    theirs.save_pretrained(tmp_path / "theirs")
    again = SharedModel(tiny_model(architecture))
    load_adapter(again, tmp_path / "theirs", "b")
    torch.testing.assert_close(hidden(again, sequence, "b"), expected, atol=1e-5, rtol=1e-5)


def test_a_head_makes_the_round_trip(tmp_path):
    shared = shared_with("a")
    save_adapter(shared, "a", tmp_path, base="tiny")
    again = SharedModel(tiny_model())
    load_adapter(again, tmp_path, "z")
    sequences = tokens(3, 9, 5)
    first, second = (sequence_scores(adapter_critic(m, n), sequences, 8) for m, n in ((shared, "a"), (again, "z")))
    assert first.std() > 0.01
    torch.testing.assert_close(first, second)


def test_the_scalar_is_read_at_the_last_token_even_where_pad_equals_eos():
    shared = shared_with("a")
    sequence = [*tokens(5)[0], 2, 2]  # ends in EOS twice: nothing may be taken for padding
    alone = sequence_scores(adapter_critic(shared, "a"), [sequence], 100)
    together = sequence_scores(adapter_critic(shared, "a"), [tokens(3)[0], sequence, tokens(9)[0]], 8)
    torch.testing.assert_close(alone[0], together[1])
    assert abs(float(alone[0] - sequence_scores(adapter_critic(shared, "a"), [sequence[:-1]], 100)[0])) > 1e-4


def test_two_adapters_in_one_forward_equal_two_forwards():
    shared = shared_with("a", "b")
    first, second = tokens(6, 9)
    route = Route(("a", "b"), (0, 6, 15))
    out = hidden(shared, [first, second], route)
    expected = torch.cat([hidden(shared, [first], "a"), hidden(shared, [second], "b")])
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_another_adapter_between_forward_and_backward_does_not_change_the_gradient(recompute):
    plain = shared_with("a", "b")
    hidden(plain, tokens(7), "a").square().sum().backward()
    expected = gradients(plain, "a")

    shared = shared_with("a", "b")
    if recompute:
        shared.checkpoint_activations()
    loss = hidden(shared, tokens(7), "a").square().sum()
    hidden(shared, tokens(5), "b")
    loss.backward()
    for ours, theirs in zip(gradients(shared, "a"), expected, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not gradients(shared, "b")


def test_activation_checkpointing_really_recomputes():
    shared = shared_with("a")
    shared.checkpoint_activations()
    calls = []
    shared.base.model.layers[1].self_attn.register_forward_hook(lambda *_: calls.append(1))
    hidden(shared, tokens(7), "a").sum().backward()
    assert len(calls) == 2


def test_only_adapters_get_gradients():
    shared = shared_with("a")
    Policy(shared, "a").logprobs(Packed.from_sequences(tokens(7), tokens(7))).logprobs.sum().backward()
    adapter = {id(p) for p in shared.parameters("a")}
    assert all(p.grad is None for p in shared.base.parameters() if id(p) not in adapter)
    assert len(gradients(shared, "a")) == len(shared.parameters("a")) - 2  # all but the head's two


def test_a_copied_adapter_is_independent():
    shared = shared_with("a")
    shared.copy_adapter("a", "b")
    sequence = tokens(7)
    torch.testing.assert_close(hidden(shared, sequence, "a"), hidden(shared, sequence, "b"))
    before = hidden(shared, sequence, "a").detach().clone()
    with torch.no_grad():
        shared.parameters("b")[0].add_(1)
    assert torch.equal(hidden(shared, sequence, "a"), before)
    assert not torch.allclose(hidden(shared, sequence, "b"), before)


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["norm"]}]
)
def test_an_unsupported_lora_option_is_refused_by_name(options):
    shared = SharedModel(tiny_model())
    with pytest.raises(UsageError, match=next(iter(options))):
        shared.add_adapter("a", LoraConfig(target_modules="all-linear", **options))


@pytest.mark.parametrize(
    ("targets", "message"), [(["nothing"], "q_proj"), (["lm_head"], "head"), (["embed_tokens"], "linear")]
)
def test_a_target_that_cannot_take_an_adapter_is_refused(targets, message):
    with pytest.raises(UsageError, match=message):
        SharedModel(tiny_model()).add_adapter("a", LoraConfig(target_modules=targets))


def test_an_adapter_of_another_base_and_a_missing_folder_name_the_remedy(tmp_path):
    save_adapter(shared_with("a", architecture="gpt2"), "a", tmp_path, base="tiny")
    with pytest.raises(UsageError, match=r"base|layer"):
        load_adapter(SharedModel(tiny_model("llama")), tmp_path, "a")
    with pytest.raises(UsageError, match=r"adapter_config\.json"):
        load_adapter(SharedModel(tiny_model()), tmp_path / "nowhere", "a")


def test_a_model_whose_logits_are_scaled_is_refused():
    shared = SharedModel(tiny_model())
    check_architecture(shared)
    shared.base.lm_head.register_forward_hook(lambda module, inputs, output: output * 1.5)
    with pytest.raises(UsageError, match="not supported"):
        check_architecture(shared)


def test_a_copied_adapter_has_a_head_of_its_own_with_the_same_numbers():
    shared = shared_with("a")
    shared.copy_adapter("a", "b")
    for (_, one), (_, other) in zip(shared.named_parameters("a"), shared.named_parameters("b"), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr() and other.requires_grad


def test_an_adapter_of_fake_tensors_is_copied_without_a_look_at_memory_that_they_do_not_have():
    """torch's deepcopy of one warns, and writes where nothing was allocated."""
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = SharedModel(tiny_model())
        shared.add_adapter("a", LORA, head=True)
        shared.copy_adapter("a", "b")
    assert [name for name, _ in shared.named_parameters("b")]
