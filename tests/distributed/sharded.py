"""What each process checks of a base whose layers are divided."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch.distributed.tensor import DTensor

from rlhf_fast.model import sharding
from rlhf_fast.model.load import load_shared
from rlhf_fast.model.sharding import gathered, layer_bytes, shard_base
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout import engine
from rlhf_fast.runtime.distributed import gather, rank
from rlhf_fast.runtime.launch import start
from tests.distributed.cases import train
from tests.model_cases import ARCHITECTURES, tiny_model


def both(stage: str, folder: Path, output: Path, options: dict[str, Any]) -> None:
    """The same run with the base in every process, and with its layers divided."""
    train(stage, folder, output / "replicated", options)
    train(stage, folder, output / "sharded", options | {"shard_base": True})


def ragged(stage: str, folder: Path, output: Path, options: dict[str, Any]) -> None:
    """`both`, where a process at times has fewer micro-batches than another."""
    fewer = torch.zeros(1)
    most = sharding.max_over_processes

    def counted(number: int) -> int:
        fewer.add_(most(number) > number)
        return most(number)

    sharding.max_over_processes = counted
    both(stage, folder, output, options)
    assert gather(fewer).sum() > 0, "the lengths are not unequal enough for this test"


def shares(folder: Path) -> None:
    """What a process holds between passes, in a forward of the second layer, and while the layers are gathered."""
    start(use_cpu=True, timeout=60)
    model, _ = load_shared(str(folder / "base"), dtype=torch.float32, shard=True)
    maps = Path("/proc/self/maps")  # on Linux
    assert not maps.exists() or str(folder / "base") not in maps.read_text()  # the file is not kept
    whole, _ = load_shared(str(folder / "base"), dtype=torch.float32)
    total = sum(p.nbytes for layer in whole.decoder_layers for p in layer.parameters())
    assert layer_bytes(model) == (total, total // 2) and layer_bytes(whole) == (0, 0)
    assert stored(model.base.parameters()) == stored(whole.base.parameters()) - total // 2

    seen: list[list[bool]] = []
    second = model.decoder_layers[1].get_submodule("mlp.down_proj")
    second.register_forward_pre_hook(lambda *_: seen.append(divided(model)))
    tokens = torch.arange(7)
    with torch.no_grad():
        hidden = model.hidden(tokens, [0, 3, 7], None)
    assert torch.equal(hidden, whole.hidden(tokens, [0, 3, 7], None))
    assert seen == [[True, False]] and divided(model) == [True, True]

    with gathered(model):
        weights = [layer.get_parameter("mlp.up_proj.weight") for layer in model.decoder_layers]
        assert divided(model) == [False, False]
        for one, layer in zip(weights, whole.decoder_layers, strict=True):
            assert torch.equal(one, layer.get_parameter("mlp.up_proj.weight"))
        for _ in range(1 + 2 * rank()):  # as many passes as each likes
            assert torch.equal(model.hidden(tokens, [0, 3, 7], None), hidden)
    assert divided(model) == [True, True]
    assert [weight.untyped_storage().nbytes() for weight in weights] == [0, 0]  # what was gathered is free again


def architectures(folder: Path) -> None:
    """Gradients of an adapter on every layer, of each family, are those with the whole base, bit for bit."""
    start(use_cpu=True, timeout=60)
    tokens, device = torch.arange(3, 17), torch.device("cpu")
    for name in ARCHITECTURES:
        models = SharedModel(tiny_model(name)), SharedModel(tiny_model(name))
        shard_base(models[1], device)
        gradients = []
        for model in models:
            torch.manual_seed(0)
            model.add_adapter("a", LoraConfig(r=4, target_modules="all-linear"))
            for parameter in model.parameters("a"):
                torch.nn.init.normal_(parameter, std=0.1)
            model.hidden(tokens, [0, 5, 14], "a").square().sum().backward()
            gradients.append([parameter.grad for parameter in model.parameters("a")])
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True)), name
        assert all(one.abs().sum() > 0 for one in gradients[0]), name
        assert all(isinstance(p, DTensor) for p in models[1].decoder_layers[-1].parameters() if not p.requires_grad)


def gathers(folder: Path) -> None:
    """How often a layer is gathered: twice for two layers in a pass, and as often again in its backward."""
    counts = [0]
    gather_layer = sharding.Gather.__call__

    def counted(self: sharding.Gather, *args: Any, **kwargs: Any) -> Any:
        counts[-1] += 1
        return gather_layer(self, *args, **kwargs)

    sharding.Gather.__call__ = counted  # type: ignore[method-assign]
    start(use_cpu=True, timeout=60)
    model, _ = load_shared(str(folder / "sft_adapter"), dtype=torch.float32, shard=True)
    tokens = torch.arange(7)
    for again in range(2):
        counts.append(0)
        with torch.no_grad():
            model.hidden(tokens, [0, 7], "sft")
        counts.append(0)
        model.hidden(tokens, [0, 7], "sft").sum().backward()
        if not again:
            model.checkpoint_activations()  # the layer is there for its recomputation
    counts.append(0)  # the first layer's inputs have no gradient: it stays until the end of a backward
    (model.hidden(tokens, [0, 7], "sft").sum() + model.hidden(tokens, [0, 7], "sft").sum()).backward()
    counts.append(0)
    with gathered(model), torch.no_grad():
        model.hidden(tokens, [0, 7], None)
    assert counts[1:] == [2, 4, 2, 4, 7, 2], counts


def divided(model: SharedModel) -> list[bool]:
    return [isinstance(layer.get_parameter("mlp.up_proj.weight"), DTensor) for layer in model.decoder_layers]


def stored(parameters: Iterable[torch.nn.Parameter]) -> int:
    """Bytes of the storages behind `parameters`."""
    own = (p.to_local() if isinstance(p, DTensor) else p for p in parameters)
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in own}.values())


def without_room(stage: str, folder: Path, output: Path) -> None:
    """Process 1 has 1000 bytes."""
    engine.free_bytes = lambda device: 10**9 if rank() == 0 else 1000
    train(stage, folder, output, {"shard_base": True, "ddp_timeout": 60})


def sharded_in_one(folder: Path, output: Path) -> None:
    train("sft", folder, output, {"shard_base": rank() == 1, "ddp_timeout": 60})
