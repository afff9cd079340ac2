"""What a PPO run would hold and allocate, from config files alone: no weight is read and no tensor has memory.

    facts = read_facts(config)      sizes of weights and adapters, exactly, and how the phases' memory grows
    facts.bytes_of(phase, load)     bytes that a phase allocates for any micro-batch

The roles are made by the same functions as a run's (`rlhf_fast.train.roles`), of fake tensors. Forwards and backwards
are traced (`rlhf_fast.profiling.trace`) for a few small micro-batches in a model of a few layers, and the rest follows:
memory grows in proportion to tokens, slots, pairs of tokens (where attention stores its scores), and layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from rlhf_fast.model.adapter_files import ADAPTER_CONFIG
from rlhf_fast.model.load import Source, config_of, resolve_source
from rlhf_fast.model.lora import LoRALinear
from rlhf_fast.model.packed_decoder import unserved
from rlhf_fast.model.roles import Critic, Policy, ScoreHead, adapter_critic
from rlhf_fast.model.shared import SharedModel, generation_length
from rlhf_fast.profiling.trace import Roles, Sequences, Traced, cache_bytes, fake_tensors, trace
from rlhf_fast.runtime.device import choose_dtype
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.train import roles as run_roles
from rlhf_fast.train.config import PPORunConfig
from rlhf_kernels import Sampler

BLOCK = 16
"""Rows of a block of packed weights: a product is rounded up to whole blocks."""
LENGTH = 128
TRACED = 8
"""Tokens of a sequence of the micro-batches that are traced, half of them response; sequences of the smallest."""


@dataclass(frozen=True)
class Weights:
    """Bytes of what is held from the first step to the last, and numbers of parameters."""

    base: int
    other_models: int  # a policy that is trained whole, a reward classifier
    policy: int
    critic: int
    reward: int
    trained: int  # parameters, each with a gradient and two moments of its own size
    gradients: int  # bytes
    largest: int  # bytes of the largest parameter that is trained
    linear: int  # entries of the linear layers of the decoder, of one forward
    head: int  # bytes of the output embedding
    packed: int  # bytes of the packed copy for decoding; 0 where the modules decode
    float_head: int  # bytes of the output embedding in float32, where sampling converts it
    stored: int  # bytes of the base in its file, by the dtype that its config states


class Facts:
    """Of a config's model and roles, found when it is made; its growth takes a few seconds when it is first asked for.

    can_undo: a run keeps a copy of what is trained; materialises: log-probs are torch's, a chunk of rows at a time,
    since the output embedding is trained; context: most tokens of a prompt and its response.
    """

    def __init__(self, config: PPORunConfig, dtype: torch.dtype) -> None:
        self.run, self.dtype = config, dtype
        self.source = resolve_source(str(config.sft_model_path))
        self.config = config_of(self.source.base, ENOUGH)
        with fake_tensors():
            self._whole = roles = self._roles(self.config)
            self.weights = _weights(roles, self.config)
            home = roles.reference.model
            self.hidden_size, self.vocabulary, self.layers = (
                home.hidden_size,
                len(home.lm_head[0]),
                len(home.decoder_layers),
            )
            self.trunk_depth, self.reads_reference = home.trunk_depth, roles.critic.reads_reference
            self.can_undo = not any(m.train_base for m in (roles.policy.model, *roles.critic.models))
            self.materialises = roles.policy.model.lm_head[0].requires_grad
            self.context = generation_length(self.config)
        self._period = _period(config, self.source, self.config, self.layers)
        self.cache_bytes = self._cache_bytes()

    def bytes_of(self, phase: str, load: Sequences) -> float:
        """The most that a phase of `Traced` allocates for a micro-batch."""
        if not load.lengths:
            return 0.0
        known = (1, load.tokens, load.slots, load.pairs)
        return max(0.0, sum(a * b for a, b in zip(self.growth[phase], known, strict=True)))

    @cached_property
    def growth(self) -> dict[str, tuple[float, ...]]:
        """By phase of `Traced`, bytes for (1, tokens, slots, pairs)."""
        with fake_tensors():
            if self._period is None:
                found = _coefficients(self._whole)
            else:
                n = self._period
                short, long = (_coefficients(self._roles(with_layers(self.config, k))) for k in (2 * n, 3 * n))
                found = short + (self.layers / n - 2) * (long - short)
        return {name: tuple(found[:, i].tolist()) for i, name in enumerate(Traced._fields)}

    def _cache_bytes(self) -> int:
        """Keys and values of a token in all layers."""
        with fake_tensors():
            if self._period is None:
                return cache_bytes(self._whole.policy)
            model = AutoModelForCausalLM.from_config(with_layers(self.config, self._period), dtype=self.dtype)
            return self.layers // self._period * cache_bytes(Policy(SharedModel(model), None))

    def _roles(self, model_config: PreTrainedConfig) -> Roles:
        return make_roles(self.run, self.source, model_config, self.dtype)


_known: dict[tuple[Any, ...], Facts] = {}


def read_facts(config: PPORunConfig, device: str = "cpu") -> Facts:
    """Of what `config` would run on "cpu" or "cuda"; found once for configs that are the same in what matters. Raises
    `UsageError` for a model that cannot be read or planned."""
    if not config.sft_model_path:
        raise UsageError(
            "a plan needs a model: set sft_model_path, or --model to a model folder, a hub name, or a folder that has "
            "the model's config.json only."
        )
    dtype = planned_dtype(config, device)
    key = (
        config.sft_model_path, config.reward_model_path, config.use_peft, config.lora_r,
        *map(repr, (config.lora_target_modules, config.lora_layers)), config.critic,
        bool(config.activation_checkpointing), config.entropy_coef != 0, config.kl_estimator == "exact", dtype,
    )  # fmt: skip
    if key not in _known:
        _known[key] = Facts(config, dtype)
    return _known[key]


ENOUGH = "A folder with the model's config.json is enough for a plan."


def planned_dtype(config: PPORunConfig, device: str) -> torch.dtype:
    """As a run would choose; on a card that is not here, bfloat16 with adapters."""
    if device == "cuda" and not torch.cuda.is_available() and config.dtype == "auto":
        return torch.bfloat16 if config.use_peft else torch.float32
    return choose_dtype(config.dtype, torch.device(device), train_base=not config.use_peft)


def make_roles(config: PPORunConfig, source: Source, model_config: PreTrainedConfig, dtype: torch.dtype) -> Roles:
    """As `build_roles`, of fake tensors: to be called within `fake_tensors`."""
    shared = SharedModel(AutoModelForCausalLM.from_config(model_config, dtype=dtype))
    sft = None
    if source.adapter is not None:
        sft = "sft"
        shared.add_adapter(sft, LoraConfig.from_pretrained(source.adapter))
    reward, path = None, config.reward_model_path
    if path is not None and run_roles.is_adapter(path):
        shared.add_adapter("reward", LoraConfig.from_pretrained(path), head=True)
        reward = adapter_critic(shared, "reward")
    found = run_roles.roles_on(
        shared, sft, config, base=source.base, reward=reward,
        copy_base=lambda _: AutoModelForCausalLM.from_config(model_config, dtype=dtype),  # fakes cannot all be copied
    )  # fmt: skip
    scorer = reward if path is None or reward is not None else _classifier(path, dtype)
    return Roles(
        found.policy, found.reference, found.critic, scorer, config.logit_temperature, config.entropy_coef != 0,
        config.kl_estimator == "exact",
    )  # fmt: skip


def _classifier(path: str, dtype: torch.dtype) -> Critic:
    """A reward model outside of the base, that reads texts side by side."""
    try:
        model = AutoModelForSequenceClassification.from_config(config_of(path, ENOUGH), dtype=dtype)
        return Critic(SharedModel(model), None, ScoreHead(model.score))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the reward model {path!r} cannot be planned: {type(error).__name__}: {str(error).splitlines()[0]} "
            "Expected a sequence classifier with a decoder such as Llama or Qwen, or a reward adapter."
        ) from error


# -- what is held


def _weights(roles: Roles, model_config: PreTrainedConfig) -> Weights:
    home, policy = roles.reference.model, roles.policy
    adapters = {name: home.parameters(name) for name in home.configs}
    inside = {id(p) for parameters in adapters.values() for p in parameters}
    base = [x for x in (*home.base.parameters(), *home.base.buffers()) if id(x) not in inside]
    others = list(policy.model.base.parameters()) if policy.model is not home else []
    if roles.scorer is not None and roles.scorer.model is not home:
        others += list(roles.scorer.model.base.parameters())
    named = [*policy.named_parameters(), *roles.critic.named_parameters()]
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    critic = [p for _, p in roles.critic.named_parameters()]
    weight, bias = policy.model.lm_head
    packs = unserved(policy.model) is None
    sampled = Sampler(weight, bias, softcap=policy.model.softcap, temperature=1.0).weight
    stored = getattr(model_config, "dtype", None) or torch.float32
    entries = sum(x.numel() for x in _unique(base))
    return Weights(
        base=_bytes(base), other_models=_bytes(others),
        policy=_bytes(adapters.get("policy", [])) + _bytes(adapters.get("sft", [])), critic=_bytes(critic),
        reward=_bytes(adapters.get("reward", [])), trained=sum(p.numel() for p in trained), gradients=_bytes(trained),
        largest=max((p.nbytes for p in trained), default=0), linear=sum(p.numel() for p in _linear(policy.model)),
        head=weight.nbytes, packed=_packed_bytes(policy.model, policy.adapter) if packs else 0,
        float_head=0 if sampled is weight else sampled.nbytes,
        stored=entries * torch.empty(0, dtype=stored).element_size(),
    )  # fmt: skip


def _unique(tensors: Iterable[Tensor]) -> list[Tensor]:
    return list({id(tensor): tensor for tensor in tensors}.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in _unique(tensors))


def _linear(model: SharedModel) -> list[Tensor]:
    """Weights of the linear layers that a token meets on its way through the decoder layers."""
    modules = [module for layer in model.decoder_layers for module in layer.modules()]
    return [module.weight for module in modules if isinstance(module, (nn.Linear, Conv1D))]


def _packed_bytes(model: SharedModel, adapter: str | None) -> int:
    """Of the packed decoder: the weights of products that are made together, with their adapter's A below them, in
    blocks of rows; B beside them."""
    total, size = 0, model.dtype.itemsize
    for layer in model.decoder_layers:
        attention, mlp = cast(Any, layer.self_attn), cast(Any, layer.mlp)
        for group in (
            [attention.q_proj, attention.k_proj, attention.v_proj], [attention.o_proj],
            [mlp.gate_proj, mlp.up_proj], [mlp.down_proj],
        ):  # fmt: skip
            rows = sum(_rows(module, adapter) for module in group)
            weight = _weight(group[0])
            total += -(-rows // BLOCK) * BLOCK * weight.shape[1] * size
            total += sum(_rank(module, adapter) * _weight(module).shape[0] * size for module in group)
    return total


def _weight(module: nn.Module) -> Tensor:
    return module.base.weight if isinstance(module, LoRALinear) else module.weight  # type: ignore[return-value]


def _rank(module: nn.Module, adapter: str | None) -> int:
    return len(module.lora_a[adapter]) if isinstance(module, LoRALinear) and adapter in module.scale else 0


def _rows(module: nn.Module, adapter: str | None) -> int:
    return _weight(module).shape[0] + _rank(module, adapter)


# -- what is allocated


def _coefficients(roles: Roles) -> np.ndarray:
    """(4, phases) float64: solved from micro-batches that differ in tokens, slots and, where they count, pairs."""
    half = LENGTH // 2
    shapes = [(TRACED, half, half), (2 * TRACED, half, half), (TRACED, half + half // 2, half // 2)]
    if stores_scores(roles):
        shapes.append((TRACED // 2, LENGTH, LENGTH))
    points = [Sequences(((prompt, response),) * count) for count, prompt, response in shapes]
    known = [(1, point.tokens, point.slots, point.pairs)[: len(points)] for point in points]
    found = np.linalg.solve(np.array(known, dtype=np.float64), np.array([trace(roles, p) for p in points], np.float64))
    return np.pad(found, ((0, 4 - len(points)), (0, 0)))


def stores_scores(roles: Roles) -> bool:
    """Whether attention keeps a score for each pair of tokens, as it does with a soft-cap or a window's mask."""
    text = roles.policy.model.base.config.get_text_config(decoder=True)
    return any(getattr(text, name, None) for name in ("attn_logit_softcapping", "sliding_window"))


def _period(config: PPORunConfig, source: Source, model_config: PreTrainedConfig, layers: int) -> int | None:
    """After how many layers the kinds of layers repeat; None where layers differ in other ways, and all are traced."""
    folders = [
        path for path in (source.adapter, config.reward_model_path) if path and (Path(path) / ADAPTER_CONFIG).is_file()
    ]
    chosen = [LoraConfig.from_pretrained(folder) for folder in folders]
    if config.lora_layers is not None or any(c.layers_to_transform or c.rank_pattern for c in chosen):
        return None
    kinds = getattr(model_config.get_text_config(decoder=True), "layer_types", None) or ["all"] * layers
    fitting = [n for n in range(1, layers // 3 + 1) if layers % n == 0 and kinds == kinds[:n] * (layers // n)]
    return fitting[0] if fitting else None


def with_layers(model_config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """A copy of the config for a model of the first `layers` layers."""
    found = copy.deepcopy(model_config)
    text = found.get_text_config(decoder=True)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.num_hidden_layers = layers
    return found
