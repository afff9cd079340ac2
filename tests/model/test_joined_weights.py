"""q, k, v and gate, up side by side in memory: the same parameters, numbers and files, without a second copy.

It is done on CUDA only; here, as what is done there, on the CPU.
"""

from __future__ import annotations

import copy
import hashlib
from functools import partial

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Phi3Config

from rlhf_fast.bench.models import SHAPES, shared_model
from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.load import load_shared
from rlhf_fast.model.lora import side_by_side
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.memory import bytes_of
from tests.model.test_fused_blocks import results, with_adapters
from tests.model_cases import ARCHITECTURES, CONFIGS, tiny_model
from tests.tiny_tokenizer import tiny_tokenizer
from tests.trainer.cases import lora, policy, trainer

JOINED = ["llama", "mistral", "qwen2", "qwen3"]
HERE = partial(join_weights, on="cpu")


def frozen(architecture: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    return tiny_model(architecture).to(dtype).requires_grad_(False)


def places(model: nn.Module, *names: str) -> list[tuple[int, int]]:
    """Rank of its storage, and offset in it, of each of these parameters."""
    found = [model.get_parameter(name) for name in names]
    storages = list(dict.fromkeys(p.untyped_storage().data_ptr() for p in found))
    return [(storages.index(p.untyped_storage().data_ptr()), p.storage_offset()) for p in found]


def alone(model: nn.Module) -> bool:
    """Whether each parameter has a storage of its own."""
    return all(p.storage_offset() == 0 and p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


@pytest.mark.parametrize("architecture", JOINED)
def test_the_parameters_are_the_same_objects_and_views_of_one_tensor_for_each_group(architecture):
    model, before = frozen(architecture), frozen(architecture)
    objects, total = dict(model.named_parameters()), bytes_of(model.parameters())
    HERE(model)
    assert all(model.get_parameter(name) is p for name, p in objects.items())
    assert all(torch.equal(p, before.get_parameter(name)) for name, p in objects.items())
    # 4 heads of 8, 2 of keys and values; 32 hidden, 48 within: q is (32, 32), k and v (16, 32), gate and up (48, 32)
    for layer in ("model.layers.0.", "model.layers.1."):
        names = [f"{layer}self_attn.{x}_proj.weight" for x in "qkvo"]
        names += [f"{layer}mlp.{x}_proj.weight" for x in ("gate", "up", "down")]
        assert places(model, *names) == [(0, 0), (0, 1024), (0, 1536), (1, 0), (2, 0), (2, 1536), (3, 0)]
        if architecture == "qwen2":
            assert places(model, *[f"{layer}self_attn.{x}_proj.bias" for x in "qkv"]) == [(0, 0), (0, 32), (0, 48)]
    assert bytes_of(model.parameters()) == total
    where = [p.data_ptr() for p in model.parameters()]
    HERE(model)
    assert [p.data_ptr() for p in model.parameters()] == where


def test_what_lies_side_by_side_is_one_view_and_anything_else_is_none():
    whole, wide = torch.arange(24.0).view(6, 4), torch.zeros(4, 8)
    a, b, c = whole.split([1, 3, 2])
    assert side_by_side([a, b, c]).data_ptr() == whole.data_ptr() and torch.equal(side_by_side([a, b, c]), whole)
    assert torch.equal(side_by_side([b, c]), whole[1:])
    assert torch.equal(side_by_side([whole[0], whole[1]]), whole[:2].flatten())  # biases
    apart = {
        "another order": [b, a, c], "a hole": [a, c], "a copy": [a, b.clone()], "no bias": [a, None], "twice": [a, a],
        "another width": [a, whole[1:].view(10, 2)], "columns": [whole[:, :2], whole[:, 2:]],
        "another type": [a, whole.view(torch.int32)[1:]], "another tensor": [a, whole.clone()[1:4]],
        "rows apart": [wide[:2, :4], wide[1:3, :4]],
    }  # fmt: skip
    assert [name for name, tensors in apart.items() if side_by_side(tensors) is not None] == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_and_gradients_are_the_same_to_the_last_bit(architecture, dtype):
    expected = results(with_adapters(architecture, dtype), "a")
    shared = with_adapters(architecture, dtype)
    HERE(shared.base)
    assert alone(shared.base) == (architecture not in JOINED)
    found = results(shared, "a")
    assert len(found) == len(expected) > 8
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class Peak(TorchDispatchMode):
    """The most bytes of these storages, and of all that is made within it, that are there at once."""

    def __init__(self, tensors) -> None:
        super().__init__()
        self.storages = {t.untyped_storage().data_ptr(): self.entry(t) for t in tensors}
        self.most = self.now()

    @staticmethod
    def entry(tensor: Tensor) -> tuple[StorageWeakRef, int]:
        return StorageWeakRef(tensor.untyped_storage()), tensor.untyped_storage().nbytes()

    def now(self) -> int:
        return sum(count for reference, count in self.storages.values() if not reference.expired())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for made in [result] if isinstance(result, Tensor) else result:
            if made.untyped_storage().data_ptr() not in self.storages or function._schema.name == "aten::cat":
                self.storages[made.untyped_storage().data_ptr()] = self.entry(made)
        self.most = max(self.most, self.now())
        return result


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_at_most_one_group_is_there_twice(architecture):
    model = frozen(architecture)
    total = bytes_of(model.parameters())
    with Peak(model.parameters()) as peak:
        HERE(model)
    assert peak.now() == total
    assert peak.most == total + 2 * 48 * 32 * 4  # gate and up, the larger group


def partly_trained() -> nn.Module:
    model = frozen("llama")
    for layer in model.model.layers:
        layer.self_attn.k_proj.weight.requires_grad_(True)
        layer.mlp.up_proj.weight.requires_grad_(True)
    return model


def fused() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = Phi3Config(**sizes, vocab_size=97, pad_token_id=0)
    return AutoModelForCausalLM.from_config(config).requires_grad_(False)


def of_two_types() -> nn.Module:
    model = frozen("llama")
    for layer in model.model.layers:
        layer.self_attn.v_proj.bfloat16()
        layer.mlp.gate_proj.bfloat16()
    return model


def quantised() -> nn.Module:
    """Layers of a class of their own, as those of four bits."""
    Quantised = type("Quantised", (nn.Linear,), {})
    model = frozen("llama")
    for name, module in list(model.named_modules()):
        if name.endswith(("v_proj", "up_proj")):
            module.__class__ = Quantised
    return model


LEFT_ALONE = {
    "all weights trained": lambda: tiny_model("llama"), "one of a group trained": partly_trained, "fused": fused,
    "two types": of_two_types, "another class": quantised, "GPT-2": lambda: frozen("gpt2"),
    "Gemma 2": lambda: frozen("gemma2"), "on meta": lambda: frozen("llama").to("meta"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE)
def test_what_is_left_alone(case):
    model = LEFT_ALONE[case]()
    HERE(model)
    assert alone(model)


def test_weights_that_are_part_of_a_larger_tensor_stay_there():
    model = frozen("llama")
    larger = torch.cat([p.flatten() for p in model.parameters()])
    for p, part in zip(model.parameters(), larger.split([p.numel() for p in model.parameters()]), strict=True):
        p.data = part.view_as(p)
    HERE(model)
    assert {p.untyped_storage().data_ptr() for p in model.parameters()} == {larger.data_ptr()}


def test_a_copy_a_cast_and_a_state_dict_have_weights_of_their_own_and_the_same_values():
    model, before = frozen("qwen2"), frozen("qwen2")
    HERE(model)
    made = copy.deepcopy(model)
    assert alone(made) and alone(copy.deepcopy(model).double())
    with torch.no_grad():
        made.model.layers[0].self_attn.q_proj.weight.zero_()
    assert all(torch.equal(p, before.get_parameter(name)) for name, p in model.named_parameters())
    again = tiny_model("qwen2", seed=1)
    again.load_state_dict(model.state_dict())
    assert all(torch.equal(p, before.get_parameter(name)) for name, p in again.named_parameters())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_files_are_the_same_byte_for_byte(architecture, tmp_path):
    model = frozen(architecture)
    for name in ("before", "after"):
        if name == "after":
            HERE(model)
        model.save_pretrained(tmp_path / name)
    one, other = (
        hashlib.sha256((tmp_path / n / "model.safetensors").read_bytes()).digest() for n in ("before", "after")
    )
    assert one == other
    own = {name: p for name, p in model.state_dict().items() if name != "lm_head.weight"}  # gemma and gpt2 tie it
    save_file(own, tmp_path / "own")
    assert all(torch.equal(p, own[name]) for name, p in load_file(tmp_path / "own").items())


@pytest.fixture
def joining_here(monkeypatch):
    """What joins weights on CUDA does on the CPU."""
    for module in ("model.load", "trainer.roles", "bench.models"):
        monkeypatch.setattr(f"rlhf_fast.{module}.join_weights", HERE)


def write(folder) -> str:
    policy().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    return str(folder / "base")


def test_a_base_is_joined_when_it_is_opened_and_one_that_is_trained_is_not(joining_here, tmp_path):
    base = write(tmp_path)
    names = [f"model.layers.1.self_attn.{x}_proj.weight" for x in "qkv"]
    assert places(load_shared(base, dtype=torch.float32)[0].base, *names) == [(0, 0), (0, 1024), (0, 1536)]
    assert alone(load_shared(base, dtype=torch.float32, train_base=True)[0].base)
    assert alone(SharedModel(copy.deepcopy(load_shared(base, dtype=torch.float32)[0].base), train_base=True).base)
    measured = shared_model("toy", torch.device("cpu"), "policy").base
    head = SHAPES["toy"].hidden // SHAPES["toy"].heads
    q, k = SHAPES["toy"].heads * head * 64, SHAPES["toy"].kv_heads * head * 64
    assert places(measured, *[n.replace(".weight", ".base.weight") for n in names]) == [(0, 0), (0, q), (0, q + k)]


def test_on_a_cpu_weights_stay_in_the_file(tmp_path):
    assert alone(load_shared(write(tmp_path), dtype=torch.float32)[0].base)
    model = frozen("llama")
    join_weights(model)
    assert alone(model)


@pytest.mark.parametrize("given", ["peft_config", "PeftModel", "all weights"])
def test_a_script_trains_and_saves_the_same(given, joining_here, monkeypatch, tmp_path):
    """A PPO of a script's own model, whose frozen weights the engine sees where the script's model has them."""

    def run(name: str) -> tuple[list, nn.Module, nn.Module]:
        torch.manual_seed(3)
        model = get_peft_model(policy(), lora()) if given == "PeftModel" else policy()
        peft_config = lora() if given == "peft_config" else None
        made = trainer(tmp_path / name, model=model, peft_config=peft_config, options={"save_strategy": "no"})
        made.train()
        made.save_model(str(tmp_path / name))
        whole = model.get_base_model() if given == "PeftModel" else model
        return made.state.log_history, made.ppo.policy.model.base, whole

    def numbers(log: list) -> list:
        return [{k: v for k, v in line.items() if not k.endswith(("eps", "seconds", "gb"))} for line in log]

    log, mirror, model = run("joined")
    trained = given == "all weights"
    q, k = model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj
    q, k = (q, k) if trained else (q.base_layer, k.base_layer)
    assert (side_by_side([q.weight, k.weight]) is None) == trained
    mirrored = {p.data_ptr() for p in mirror.parameters()}
    assert {q.weight.data_ptr(), k.weight.data_ptr()} <= mirrored  # no second copy
    monkeypatch.setattr("rlhf_fast.trainer.roles.join_weights", join_weights)
    again, _, _ = run("apart")
    assert numbers(log) == numbers(again) and len(log) > 1
    name = "model.safetensors" if trained else "adapter_model.safetensors"
    assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes()


def test_every_family_is_opened_joined_with_the_logits_of_before(joining_here, monkeypatch, tmp_path):
    found = {}
    for architecture in CONFIGS:
        tiny_model(architecture).save_pretrained(tmp_path / architecture)
        shared, _ = load_shared(str(tmp_path / architecture), dtype=torch.float32)
        with monkeypatch.context() as patch:
            patch.setattr("rlhf_fast.model.load.join_weights", join_weights)
            before, _ = load_shared(str(tmp_path / architecture), dtype=torch.float32)
        assert alone(before.base)
        shared.add_adapter("a", LoraConfig(r=4, target_modules="all-linear"))
        before.add_adapter("a", LoraConfig(r=4, target_modules="all-linear"))
        sequence = torch.arange(3, 23)
        one, other = (s.hidden(sequence, [0, 9, 20], "a") @ s.lm_head[0].t() for s in (shared, before))
        assert torch.equal(one, other)
        found[architecture] = alone(shared.base)
    assert found == {name: name not in JOINED for name in CONFIGS}
