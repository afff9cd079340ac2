"""`SharedModel`: one frozen copy of the base, and named LoRA adapters (some with a scalar head) that share it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_fast.model.attention import ATTENTION, DecodeStep, KVCache, PackedSequences, has_softcap
from rlhf_fast.model.fused_blocks import fuse_blocks
from rlhf_fast.model.lora import LoRALinear, Route, Routing, Trunk, checkpoint_activations
from rlhf_fast.model.rope import rope_threshold, serve_ropes
from rlhf_fast.model.targets import (
    default_targets,
    find_places,
    linear_layers,
    rank_and_scale,
    refuse_unserved,
    resolve_targets,
)
from rlhf_fast.model.trunk import TrunkCache, TrunkStates, decoder_layers, depth_below, serve_trunk
from rlhf_fast.model.work import tell_forward
from rlhf_fast.runtime.errors import UsageError
from rlhf_kernels.checks import to_device
from rlhf_kernels.packed_attention import attention_backend

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule


class SharedModel:
    """A decoder-only transformers model, frozen, whose forward serves each row with the adapter it is told to use.

    model: the base. It is changed in place: set to `eval()`, its attention replaced by the packed one, its
    parameters frozen (unless `train_base`), its targeted linear layers wrapped when the first adapter needs them.
    A copy of another `SharedModel`'s base may come with that one's adapters: they are taken out.
    """

    def __init__(self, model: PreTrainedModel, *, train_base: bool = False) -> None:
        for name, module in list(model.named_modules()):
            if isinstance(module, LoRALinear):
                model.set_submodule(name, module.base)
        self.base = model.eval()
        self.base.set_attn_implementation(ATTENTION)
        self.base.requires_grad_(train_base)
        self.train_base = train_base
        self.backbone = cast(nn.Module, model.base_model)
        self.head_module = model.get_output_embeddings()
        self.routing = Routing()
        serve_ropes(model, rope_threshold(model.config), self.routing)
        self.decoder_layers = decoder_layers(model.get_decoder())
        self.serves_trunk = True  # False where a layer needs more than the hidden states of the one below
        self.trunk_cache: TrunkCache | None = None
        self.sharded: list[FSDPModule] = []  # the decoder layers, where the processes divide them (see `sharding`)
        fuse_blocks(self.base, self.routing)
        serve_trunk(self.decoder_layers, self.routing)
        self.layers: dict[str, nn.Module] = dict(model.named_modules())
        self.places = find_places(model, self.decoder_layers)
        self.wrapped: dict[str, LoRALinear] = {}
        self.configs: dict[str, LoraConfig] = {}
        self.heads: dict[str, ScalarHead] = {}

    # -- facts about the base

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def hidden_size(self) -> int:
        return self.base.config.get_text_config(decoder=True).hidden_size

    @property
    def max_length(self) -> int | None:
        """Context length in tokens, where the architecture states one."""
        return context_length(self.base.config)

    @property
    def generation_length(self) -> int | None:
        """Tokens of a prompt and a response that is sampled, together, where there is a limit."""
        return generation_length(self.base.config)

    @cached_property
    def cache_bytes(self) -> int:
        """Bytes of the keys and values of one token in all layers, measured once with a forward of one token."""
        cache = KVCache(1, 1)
        with torch.no_grad():
            token = torch.zeros(1, dtype=torch.int64, device=self.device)
            self.prefill(token, PackedSequences([0, 1], cache), None)
        return cache.nbytes()

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end a text by the model's own generation config, which may name several."""
        return eos_ids(self.base)

    @property
    def lm_head(self) -> tuple[Tensor, Tensor | None]:
        """Weight (V, H) and bias (V,) or None of the language-model head."""
        if self.head_module is None:
            raise UsageError(f"{type(self.base).__name__} has no language-model head; load it as a causal LM.")
        return self.head_module.weight, getattr(self.head_module, "bias", None)

    @property
    def softcap(self) -> float | None:
        """Soft-cap of the logits (Gemma 2), None for most."""
        return getattr(self.base.config.get_text_config(decoder=True), "final_logit_softcapping", None)

    @property
    def attention(self) -> str | None:
        """The backend of `rlhf_kernels` in which training attends all sequences in one call, or None: one a sequence.

        The kernels have no soft-cap, and values with as many entries as keys.
        """
        config = self.base.config.get_text_config(decoder=True)
        if has_softcap(config) or hasattr(config, "v_head_dim"):
            return None
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        q, k = (
            torch.empty(0, n, size, dtype=self.dtype, device=self.device)
            for n in (heads, getattr(config, "num_key_value_heads", None) or heads)
        )
        return attention_backend(q, k)

    @property
    def linear_layers(self) -> list[str]:
        """Short names of the layers that can take an adapter: the linear layers that read text, but the head."""
        return linear_layers(self.layers, self.places)

    # -- adapters

    def add_adapter(self, name: str, config: LoraConfig, *, head: bool = False) -> None:
        """A fresh adapter (B = 0: it changes nothing yet), with a fresh scalar head if asked."""
        self._refuse_taken(name)
        config = copy.deepcopy(config)
        refuse_unserved(config)
        if config.target_modules is None:
            config.target_modules = default_targets(self.base.config.model_type)
        for layer in resolve_targets(self.layers, self.places, config):
            rank, scale = rank_and_scale(config, layer)
            self._wrap(layer).add(name, rank, scale)
        config.fan_in_fan_out = any(isinstance(self.layers[layer], Conv1D) for layer in self.wrapped)
        self.configs[name] = config
        if head:
            self.add_head(name)

    def bind_adapter(
        self, name: str, config: LoraConfig, factors: Mapping[str, tuple[nn.Parameter, nn.Parameter, float]]
    ) -> None:
        """An adapter whose A, B (see `LoRALinear.bind`) and scale belong to another model, by the layer's name."""
        self._refuse_taken(name)
        for layer, (a, b, scale) in factors.items():
            self._wrap(layer).bind(name, a, b, scale)
        self.configs[name] = copy.deepcopy(config)

    def copy_adapter(self, source: str, target: str) -> None:
        """`target` becomes an independent copy of `source`, its head included."""
        self._refuse_taken(target)
        self._refuse_unknown(source)
        for layer in self._layers_of(source):
            layer.copy(source, target)
        self.configs[target] = copy.deepcopy(self.configs[source])
        if source in self.heads:
            self.add_head(target)  # a deepcopy would corrupt the heap where tensors are fake, as a plan's are
            self.heads[target].load_state_dict(self.heads[source].state_dict())

    def add_head(self, name: str) -> None:
        self.heads[name] = ScalarHead(self.hidden_size, self.device)

    def remove_adapter(self, name: str) -> None:
        self._refuse_unknown(name)
        for layer in list(self._layers_of(name)):
            layer.remove(name)
        self.configs.pop(name)
        self.heads.pop(name, None)

    def parameters(self, name: str) -> list[nn.Parameter]:
        """The trainable parameters of an adapter and its head, in a fixed order."""
        return [parameter for _, parameter in self.named_parameters(name)]

    def named_parameters(self, name: str) -> Iterator[tuple[str, nn.Parameter]]:
        self._refuse_unknown(name)
        for layer_name, layer in self.wrapped.items():
            if name in layer.scale:
                yield f"{layer_name}.lora_A.weight", layer.lora_a[name]
                yield f"{layer_name}.lora_B.weight", layer.lora_b[name]
        if name in self.heads:
            for key, parameter in self.heads[name].named_parameters():
                yield f"head.{key}", parameter

    # -- forward

    def hidden(
        self, tokens: Tensor, cu_seqlens: list[int], route: Route | str | None, *, trunk: TrunkStates | None = None
    ) -> Tensor:
        """Last hidden states (T, H) of packed tokens (T,) int64; `route` is an adapter's name, None, or a `Route`.

        `trunk` are the states that `trunk_states` gave for the same tokens: only the layers above them run.
        """
        sequences = PackedSequences(cu_seqlens)
        start = None
        if trunk is not None:
            if trunk.model is not self or trunk.depth > self.trunk_depth:
                raise ValueError("the trunk states are those of another model, or adapters were added below them since")
            start = Trunk(trunk.depth, trunk.hidden[None])
        where = positions(cu_seqlens, tokens.device)[None]
        return self._forward(tokens[None], where, sequences, route, start).squeeze(0)

    @property
    def trunk_depth(self) -> int:
        """How many decoder layers lie below every adapter and are frozen: the same network for all roles."""
        if self.train_base or not self.serves_trunk:
            return 0
        return depth_below(self.decoder_layers, (layer for layer in self.wrapped.values() if layer.scale))

    @torch.no_grad()
    def trunk_states(self, tokens: Tensor, cu_seqlens: list[int]) -> TrunkStates | None:
        """What the trunk gives for packed tokens (T,); None where there is no trunk to share (depth 0)."""
        depth = self.trunk_depth
        if depth == 0:
            return None
        catch = Trunk(depth)
        where = positions(cu_seqlens, tokens.device)[None]
        self._forward(tokens[None], where, PackedSequences(cu_seqlens), None, catch)
        assert catch.caught is not None
        return TrunkStates(self, depth, catch.caught[0])

    def prefill(self, tokens: Tensor, sequences: PackedSequences, route: Route | str | None) -> Tensor:
        """As `hidden`, writing keys and values to the cache of `sequences`."""
        return self._forward(tokens[None], positions(sequences.cu_seqlens, tokens.device)[None], sequences, route)[0]

    def decode(self, tokens: Tensor, step: DecodeStep, route: Route | str | None) -> Tensor:
        """Hidden states (B, H) of one new token (B,) for each live sequence of the cache."""
        return self._forward(tokens[:, None], step.lengths[:, None], step, route)[:, 0]

    def _forward(
        self, tokens: Tensor, position_ids: Tensor, sequences: PackedSequences | DecodeStep,
        route: Route | str | None, trunk: Trunk | None = None,
    ) -> Tensor:  # fmt: skip
        if not isinstance(route, Route):
            if route is not None:
                self._refuse_unknown(route)
            route = Route.single(route, tokens.numel())
        if trunk is not None:
            route = replace(route, trunk=trunk)
        above = trunk is not None and trunk.hidden is not None
        layers = slice(trunk.depth, None) if trunk and above else slice(0, trunk.depth if trunk else None)
        tell_forward(self, tokens.numel(), getattr(sequences, "cu_seqlens", None), layers)
        with self.routing.use(route):
            out = self.backbone(
                input_ids=tokens, position_ids=position_ids, use_cache=False, sequences=sequences, return_dict=True
            )
        return out.last_hidden_state

    def checkpoint_activations(self) -> None:
        """Recompute each layer in backward instead of keeping its activations; the forward's route is restored."""
        checkpoint_activations(self.base, self.routing)

    # -- helpers

    def _wrap(self, layer: str) -> LoRALinear:
        if layer not in self.wrapped:
            parent, _, child = layer.rpartition(".")
            wrapper = LoRALinear(cast("nn.Linear | Conv1D", self.layers[layer]), self.routing)
            setattr(self.base.get_submodule(parent), child, wrapper)
            self.wrapped[layer] = wrapper
        return self.wrapped[layer]

    def _layers_of(self, name: str) -> Iterator[LoRALinear]:
        return (layer for layer in self.wrapped.values() if name in layer.scale)

    def _refuse_taken(self, name: str) -> None:
        if name in self.configs:
            raise UsageError(f"adapter {name!r} is there already; remove it first or choose another name.")

    def _refuse_unknown(self, name: str) -> None:
        if name not in self.configs:
            raise UsageError(f"no adapter {name!r}; there are: {', '.join(self.configs) or 'none'}.")


def eos_ids(model: PreTrainedModel) -> tuple[int, ...]:
    """Ids that end a text by the generation config of `model`, which may name several."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return () if ids is None else tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)


def context_length(config: PreTrainedConfig) -> int | None:
    """Tokens that a model of this config can read, where the architecture states a number."""
    return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)


def generation_length(config: PreTrainedConfig) -> int | None:
    """Tokens of a prompt and a sampled response together: the context, or less where the rotary embedding would
    change while the response grows (see `rope`)."""
    return min((n for n in (context_length(config), rope_threshold(config)) if n is not None), default=None)


def positions(cu_seqlens: list[int], device: torch.device) -> Tensor:
    """(T,) int64: the position of each packed token in its own sequence."""
    offsets, total = torch.tensor(cu_seqlens), cu_seqlens[-1]  # on the host: nothing waits for the device
    starts = offsets[:-1].repeat_interleave(offsets.diff(), output_size=total)
    return to_device(torch.arange(total) - starts, device)


class ScalarHead(nn.Module):
    """y = h . w + b in fp32; starts at zero, so a fresh critic predicts 0 and a fresh reward model prefers nothing."""

    def __init__(self, hidden_size: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) of any float dtype -> (...) f32."""
        return hidden.float() @ self.weight + self.bias

    @torch.no_grad()
    def normalise_(self, mean: float, std: float) -> None:
        """Change the head in place so that y becomes (y - mean) / std."""
        self.weight.div_(std)
        self.bias.copy_((self.bias - mean) / std)


class ScoreHead(nn.Module):
    """The `score` of a sequence classifier, a module that gives one number for each state by itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, H) of any float dtype -> (R,) f32. The module reads (1, R, H), as transformers calls it."""
        dtype = next((parameter.dtype for parameter in self.layer.parameters()), hidden.dtype)
        return self.layer(hidden[None].to(dtype))[0, :, 0].float()
