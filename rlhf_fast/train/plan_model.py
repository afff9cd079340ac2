"""What a PPO run would hold and allocate, from config files alone: no weight is read and no tensor has memory.

    facts = read_facts(config)      sizes of weights and adapters, exactly, and how the phases' memory grows
    facts.bytes_of(phase, load)     bytes that a phase allocates for any micro-batch

The roles are made by the same functions as a run's (`rlhf_fast.train.roles`), of fake tensors. Forwards and backwards
are traced (`rlhf_fast.profiling.trace`) for a few small micro-batches in a model of a few layers, and the rest follows:
memory grows in proportion to tokens, slots and layers and, where attention stores its scores, pairs of tokens. The most
is in one place of a pass for small micro-batches and in another for large ones: it is the larger of two such sums.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
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


SHORT, LONG = 8, 8192
"""Units of the micro-batches that are traced: where what grows with tokens is little of what is held, and most."""
FEW = 4
"""Sequences of the smallest, where scores are of one sequence at a time and are to be little beside the rest."""


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
    checked: int  # bytes of it in float32, which the check of the architecture makes where it has another dtype
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
            roles = self.make_roles()
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
        """The most that a phase of `Traced` allocates for a micro-batch; of a decode's step, for rows so long."""
        if not load.lengths:
            return 0.0
        known = _counts(phase, load)
        return max(0.0, *(sum(a * b for a, b in zip(rates, known, strict=True)) for rates in self.growth[phase]))

    @cached_property
    def growth(self) -> dict[str, list[list[float]]]:
        """By phase of `Traced`, bytes for each of `_counts`, of small and of large micro-batches."""
        with fake_tensors():
            if self._period is None:
                found = _coefficients(self.make_roles())
            else:
                n = self._period
                few = n if n > 1 else 2
                short, long = (_coefficients(self.make_roles(k)) for k in (few, few + n))
                found = short + (self.layers - few) / n * (long - short)
        return dict(zip(Traced._fields, found.tolist(), strict=True))

    def _cache_bytes(self) -> int:
        """Keys and values of a token in all layers."""
        with fake_tensors():
            if self._period is None:
                return cache_bytes(self.make_roles().policy)
            model = AutoModelForCausalLM.from_config(with_layers(self.config, self._period), dtype=self.dtype)
            return self.layers // self._period * cache_bytes(Policy(SharedModel(model), None))

    def make_roles(self, layers: int | None = None) -> Roles:
        """With so many layers, or all; afresh, as tensors of another `fake_tensors` would count as new ones."""
        model_config = self.config if layers is None else with_layers(self.config, layers)
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
        head=weight.nbytes, checked=0 if weight.dtype == torch.float32 else 4 * weight.numel(),
        packed=_packed_bytes(policy.model, policy.adapter) if packs else 0,
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


def _micro_batches(unit: int, few: int = 1, *, pairs: bool) -> list[Sequences]:
    """Of `few` sequences of `unit` prompt tokens and as many of a response, and more: with other numbers of tokens and
    slots and, with `pairs`, of pairs of tokens as well."""
    shapes = [(1, 1, 1), (2, 1, 1), (1, 1, 2)]  # sequences, prompt, response
    if pairs:
        shapes += [(1, 2, 1), (1, 3, 1), (2, 3, 1)]
    return [Sequences(((unit * prompt, unit * response),) * few * count) for count, prompt, response in shapes]


def _coefficients(roles: Roles) -> np.ndarray:
    """(phases, 2, 6) float64: bytes for each of `_counts`, solved from micro-batches that differ in them."""
    none = np.zeros((len(Traced._fields), 6))
    if roles.policy.model.attention is not None:
        return np.stack([_solved(roles, _micro_batches(n, pairs=False), none, range(3)) for n in (SHORT, LONG)], axis=1)
    short = _solved(roles, _micro_batches(SHORT, FEW, pairs=True), none, range(6))
    beside = np.where(np.arange(6) == SLOTS, short, 0)  # among so many scores a slot's bytes could not be seen
    points = [point for point in _micro_batches(LONG, pairs=True) if point.slots == LONG * len(point.lengths)]
    return np.stack([short, _solved(roles, points, beside, [TOKENS, *range(SLOTS + 1, 6)])], axis=1)


def _solved(roles: Roles, points: Sequence[Sequences], known: np.ndarray, unknown: Sequence[int]) -> np.ndarray:
    """`known` (phases, 6) with what is `unknown` in it. Counts that make no difference get 0."""
    found = known.copy()
    for row, phase, peaks in zip(found, Traced._fields, np.transpose([trace(roles, p) for p in points]), strict=True):
        counts = np.array([_counts(phase, point) for point in points], np.float64)
        scale = np.maximum(counts.max(0), 1)[unknown]
        row[unknown] = np.linalg.lstsq(counts[:, unknown] / scale, peaks - counts @ row, rcond=1e-9)[0] / scale
    return found


TOKENS, SLOTS = 1, 2


def _counts(phase: str, load: Sequences) -> tuple[int, ...]:
    """What the memory of a phase grows with: 1, tokens, slots, pairs of tokens; of the longest sequence alone its pairs
    and its tokens, as scores are of one sequence at a time."""
    if phase == "decode":
        rows = len(load.lengths)  # each attends to as many positions as the longest has
        return 1, rows * load.longest, rows, 0, 0, 0
    read = load.prompts if phase == "prefill" else load
    return 1, read.tokens, read.slots, read.pairs, read.longest**2, read.longest


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
