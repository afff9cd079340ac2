"""What of the objects that a script hands over a checkpoint has to fit: configs and weights of the models, adapters,
and a given optimiser with its schedule.

A digest of weights reads every one of them once where it lies, as a copy of the model would: a sum of bits is exact, so
it is the same on each device and in each order, and tells any single change; a few values tell weights that were
exchanged. Objects that training changes may be given as they were before the run, or as the checkpoint holds them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig

from rlhf_fast.rewards.source import WeightedRewards
from rlhf_fast.runtime.checkpoint import TENSORS, State, read_facts
from rlhf_fast.runtime.identity import PLACES, fingerprint
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.roles import Roles
from rlhf_fast.trainer.config import PPOConfig
from rlhf_fast.trainer.given import Given, active_adapter, factors, mirror, whole
from rlhf_fast.trainer.optimisers import Pace, described

_SAMPLES = 16  # values of a tensor, evenly spaced
_FREE = {
    *PLACES, "architectures", "dtype", "torch_dtype", "use_cache", "output_attentions", "output_hidden_states",
    "return_dict", "eos_token_id",
}  # fmt: skip
"""Entries of a model's config that no number depends on, or that stand elsewhere: a dtype with each weight, what ends a
response with the run."""


class HandedOver:
    """The facts of a trainer's objects, by name, before a step; what training changes may be as a checkpoint has it."""

    def __init__(
        self, args: PPOConfig, ppo: PPO, roles: Roles, policy_model: Given, ref_model: Any, reward_model: Any,
        value_model: Any, *,
        fresh: bool,
    ) -> None:  # fmt: skip
        """fresh: the policy's adapter was made by the trainer, and is drawn from its seed."""
        self.optimiser: Optimiser = ppo.optimiser
        self.trained: dict[str, Mapping[str, Tensor]] = {}  # what training changes, by the name of its fact
        self.facts: dict[str, Any] = {"stop token ids": sorted(ppo.sampling.stop_ids)}
        self._policy(roles, policy_model, fresh=fresh)
        if roles.reference.model is not roles.policy.model:
            self._model("the reference", policy_model if ref_model is None else ref_model, trained=False)
        elif args.ref_adapter_name is not None:
            self._adapter("the reference", policy_model, args.ref_adapter_name, trained=False)
        for role, given in (("reward_model", reward_model), ("value_model", value_model)):
            for number, module in enumerate(modules_of(given), 1):
                self._module(role if number == 1 else f"{role} ({number})", module, trained=role == "value_model")

    def held(self, path: Path) -> dict[str, Any]:
        """The facts that the checkpoint at `path` gives, if what it holds were handed over."""
        places = {id(parameter): i for i, parameter in enumerate(self.optimiser.in_order())}
        with safe_open(path / TENSORS, "pt") as saved:
            keys = set(saved.keys())

            def now(tensor: Tensor) -> Tensor:
                key = f"optimiser/{places.get(id(tensor))}/parameter"
                return saved.get_tensor(key) if key in keys else tensor

            facts = {name: digest({k: now(t) for k, t in named.items()}) for name, named in self.trained.items()}
        place = read_facts(path)["optimiser"]["scheduled"]
        pace = self.optimiser.pace
        if isinstance(pace, Pace) and isinstance(place, dict):
            facts |= pace.describe(State(facts=place))
        return facts

    def with_optimiser(self) -> dict[str, Any]:
        """The facts, and those of the optimiser and schedule that are given now."""
        return self.facts | described(self.optimiser)

    def _policy(self, roles: Roles, model: Given, *, fresh: bool) -> None:
        self._model("model", model, trained=roles.policy.adapter is None)
        if roles.policy.adapter is not None:
            self._adapter("model", model, active_adapter("model", model), trained=True, fresh=fresh)  # type: ignore[arg-type]

    def _model(self, role: str, model: Any, *, trained: bool) -> None:
        """Of a language model without its adapters; as a reference, with the one that is active."""
        base = mirror(model, trained=True)
        self._weights(role, base.state_dict(keep_vars=True), trained=trained)
        self.facts[f"config of {role}"] = config_digest(base.config)
        if role != "model" and isinstance(model, PeftModel):
            self._adapter(role, model, active_adapter(role, model), trained=False)

    def _adapter(self, role: str, model: Any, name: str, *, trained: bool, fresh: bool = False) -> None:
        layers = factors(model, name)
        shape = sorted((layer, len(a), scale) for layer, (a, _, scale) in layers.items())
        ranks, scales = ({one[i] for one in shape} for i in (1, 2))
        self.facts[f"adapter of {role}"] = (
            f"r {', '.join(map(str, sorted(ranks)))} and scale {', '.join(f'{scale:g}' for scale in sorted(scales))} "
            f"on {len(shape)} layers ({fingerprint(shape)})"
        )
        if not fresh:
            parts = {f"{layer}.{part}": t for layer, (a, b, _) in layers.items() for part, t in (("A", a), ("B", b))}
            self._weights(f"the adapter of {role}", parts, trained=trained)

    def _module(self, role: str, module: nn.Module, *, trained: bool) -> None:
        own = whole(module) if isinstance(module, PeftModel) else module
        self._weights(role, own.state_dict(keep_vars=True), trained=trained)
        if isinstance(config := getattr(own, "config", None), PreTrainedConfig):
            self.facts[f"config of {role}"] = config_digest(config)

    def _weights(self, role: str, tensors: Mapping[str, Tensor], *, trained: bool) -> None:
        name = f"weights of {role}"
        self.facts[name] = digest(tensors)
        if trained:
            self.trained[name] = tensors


def modules_of(given: Any) -> list[nn.Module]:
    """The models in a reward or a value model: the object itself, or its attributes; of several rewards, in order."""
    if isinstance(given, nn.Module):
        return [given]
    if isinstance(given, WeightedRewards):
        return [module for source, _ in given.sources for module in modules_of(source)]
    return [value for value in getattr(given, "__dict__", {}).values() if isinstance(value, nn.Module)]


def config_digest(config: PreTrainedConfig) -> str:
    """Of what a model's config says, but for what no number depends on."""
    return fingerprint([_kept(config.to_dict())])


def _kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _kept(v) for k, v in sorted(value.items(), key=str) if k not in _FREE}
    return value


@torch.no_grad()
def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes, dtypes and values, in the order of the names."""
    whole_digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        facts = [name, list(tensor.shape), str(tensor.dtype), _sum_of_bits(tensor), _samples(tensor)]
        whole_digest.update(json.dumps(facts).encode())
    return whole_digest.hexdigest()[:16]


def _sum_of_bits(tensor: Tensor) -> list[int]:
    """Of the tensor's bytes as whole numbers of 64 bits, modulo 2^64, and of those that are left."""
    flat = _bytes(tensor)
    end = len(flat) // 8 * 8
    return [int(flat[:end].view(torch.int64).sum()), int(flat[end:].sum())]


def _samples(tensor: Tensor) -> str:
    flat = tensor.reshape(-1)
    where = torch.linspace(0, max(0, len(flat) - 1), min(_SAMPLES, len(flat)), dtype=torch.float64).long()
    return bytes(_bytes(flat[where.to(flat.device)]).tolist()).hex()


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat if flat.storage_offset() % 8 == 0 else flat.clone()
