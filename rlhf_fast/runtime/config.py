"""Configs: plain dataclasses whose fields carry their own help, check, and meaning for a resume.

option, Check          how a field is declared, and what its value has to be
Config                 any of them: unknown names, kinds and checks are answered as it is made, which starts nothing
StageConfig            what the stages that train share
InferenceConfig        what the tools that only sample and score share
"""

from __future__ import annotations

import inspect
import json
import math
import os
import types
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import Enum
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from rlhf_fast.runtime.device import choose_device
from rlhf_fast.runtime.distributed import world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.hints import field_hint, value_hint

Resume = Literal["result", "free", "rounding", "division", "length"]
"""What a field means for a checkpoint that a run may go on from.

result: the run's numbers depend on it, so it has to be what it was. free: no number does. rounding: it changes the
order of sums only; a run that ran out of memory may go on with another. division: it divides a batch, as the number of
processes does; only the product, `batch_size`, has to stay, unless a mean is over the parts. length: how long the run
is; one may go on for longer, with the learning rates of the new length.
"""
Read = Literal["made", "train", "step"]
"""When the trainer reads a field for the last time: as it is made, as `train` begins, or at every step."""

Schedule = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt",
    "cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay",
]  # fmt: skip
"""The schedules of transformers but for those that follow evaluations."""


@dataclass(frozen=True)
class Check:
    """Whether a value can be used, and what was expected: words that follow `expected`. None passes where its field
    may be nothing."""

    holds: Callable[[Any], bool]
    words: str


def at_least(least: float) -> Check:
    return Check(lambda value: value >= least, f"at least {least}")


def above(limit: float) -> Check:
    return Check(lambda value: value > limit, f"a number above {limit}")


def zero_or_more(of_zero: str = "") -> Check:
    """of_zero: what 0 does."""
    return Check(lambda value: value >= 0, f"0 ({of_zero}) or more" if of_zero else "0 or more")


BY_DEVICE = {
    "training tokens": {"cpu": 1024, "cuda": 4096},
    "inference tokens": {"cpu": 2048, "cuda": 16384},
    "responses": {"cpu": 32, "cuda": 256},
}
"""What fields that are 0 become, by the type of the device: see docs/gpu.md for where the numbers come from."""

SHARE = Check(lambda value: 0 <= value < 1, "from 0 to below 1")
NOT_EMPTY = Check(all, "strings of one character or more")


class Option(Field):
    """A dataclass field that knows its check, its meaning for a resume, and when it is read. They are attributes, not
    metadata, all of which `HfArgumentParser` hands to argparse."""

    __slots__ = ("check", "read", "resume")
    check: Check | None
    resume: Resume
    read: Read


UNSAID: Any = object()
"""A fact that a declaration does not state: that of the field that it declares again, else the usual one."""
USUAL: dict[str, Any] = {"check": None, "resume": "result", "read": "made"}


def option(
    default: Any, help: str, *, check: Check | None = UNSAID, resume: Resume = UNSAID, read: Read = UNSAID
) -> Any:
    """A field of a config; a `default` that is a list is copied for each."""
    how: Any = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    plain, made = field(**how, metadata={"help": help}), Option.__new__(Option)
    for name in Field.__slots__:  # as `field` made them: its arguments differ between versions of Python
        setattr(made, name, getattr(plain, name))
    made.check, made.resume, made.read = check, resume, read
    return made


def same(config_class: type, name: str) -> Any:
    """The field `name` of another config, with all its facts."""
    return copy(config_class.__dataclass_fields__[name])  # type: ignore[attr-defined]


@dataclass
class Config:
    """The base of every config. Making one raises `UsageError` for a name that it does not have, a value of another
    kind than its annotation, and a value that its check does not pass."""

    instead: ClassVar[dict[str, str]] = {}
    """What serves names that it does not have, before what `rlhf_fast.runtime.hints` says."""

    def __init_subclass__(cls, **given: Any) -> None:
        """Complete the facts of the fields that `cls` declares: what it does not state of one that a base has is as the
        base says, and all of it where it is declared again as a plain field."""
        super().__init_subclass__(**given)
        for name in inspect.get_annotations(cls):
            fields_of = (getattr(base, "__dataclass_fields__", {}) for base in cls.__mro__[1:])
            known = next((found[name] for found in fields_of if isinstance(found.get(name), Option)), None)
            own = vars(cls).get(name, MISSING)
            if known is not None and own is not MISSING and not isinstance(own, Option):
                own = _with_default(known, own)
                setattr(cls, name, own)
            for fact, usual in USUAL.items() if isinstance(own, Option) else ():
                if getattr(own, fact) is UNSAID:
                    setattr(own, fact, usual if known is None else getattr(known, fact))

    def __new__(cls, *args: Any, **given: Any) -> Any:
        taken = inspect.signature(cls.__init__).parameters  # a subclass may have an `__init__` of its own
        own = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        for name in given:
            if not own and name not in taken:
                raise UsageError(unknown_field(name, cls, cls.__name__, f"help({cls.__name__}) lists the fields"))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise `UsageError` for the first field whose value is of another kind or does not pass its check."""
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), Enum):  # transformers has some, of texts
                setattr(self, f.name, value.value)
        check_kinds(self, field_names(type(self)))
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(f, Option) and f.check and value is not None and not f.check.holds(value):
                may_be_nothing = type(None) in get_args(get_type_hints(type(self))[f.name])
                self.require(False, f.name, f.check.words + (", or nothing" if may_be_nothing else ""))

    def require(self, condition: bool, name: str, expected: str) -> None:
        """Raise `UsageError` naming the field, its value and what was expected, unless `condition`."""
        if not condition:
            raise UsageError(f"{name}={getattr(self, name)!r} cannot be used: expected {expected}.")


@dataclass
class StageConfig(Config):
    """Fields of every stage that trains."""

    stage: ClassVar[str] = ""
    """The verb of the command line that runs it."""

    output_dir: str = option("output", "Where checkpoints, metrics and results are written.", resume="free")
    per_device_train_batch_size: int = option(
        8, "Rows of a process in an optimiser step.", check=at_least(1), resume="division"
    )
    gradient_accumulation_steps: int = option(
        1, "Multiplies per_device_train_batch_size; with the number of processes it makes the batch.",
        check=at_least(1), resume="division",
    )  # fmt: skip
    num_train_epochs: float = option(3.0, "Passes over the data.", check=above(0), resume="length")
    learning_rate: float = option(5e-5, "Peak learning rate of AdamW.", check=above(0))
    lr_scheduler_type: Schedule = option("linear", "How the learning rate changes over the steps, as in transformers.")
    lr_scheduler_kwargs: dict[str, Any] | str | None = option(
        None, "More arguments of the schedule, as JSON: '{\"num_cycles\": 2}'."
    )
    warmup_steps: float = option(
        0, "Steps in which the learning rate rises from 0 to its peak; below 1, their share of all steps.",
        check=zero_or_more(),
    )  # fmt: skip
    weight_decay: float = option(0.0, "Weight decay of AdamW, on matrices only.", check=zero_or_more("off"))
    adam_beta1: float = option(0.9, "Decay of AdamW's mean of gradients.", check=SHARE)
    adam_beta2: float = option(0.999, "Decay of AdamW's mean of squared gradients.", check=SHARE)
    adam_epsilon: float = option(1e-8, "Added to the root in AdamW's denominator.", check=zero_or_more())
    max_grad_norm: float = option(1.0, "Gradients are scaled down to this norm; 0: never.", check=zero_or_more("off"))
    seed: int = option(42, "Seed of weights that are new, of the order of rows, and of sampling.")
    use_cpu: bool = option(False, "Compute on the CPU even where there is a GPU.")
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", "Compute dtype of the base. auto: bfloat16 where the hardware multiplies it, else float32."
    )
    shard_base: bool = option(
        False, "Divide the layers of the frozen base among the processes; each is gathered when it is run.",
        resume="rounding",
    )  # fmt: skip
    use_peft: bool = option(True, "Train a LoRA adapter (default) or, if false, all weights of the model.")
    lora_r: int = option(16, "Rank of the LoRA adapter.", check=at_least(1))
    lora_alpha: float = option(32, "LoRA scale is lora_alpha / lora_r.", check=above(0))
    lora_target_modules: list[str] | None = option(
        None, "Layers that get an adapter, by name. Default: every linear layer but the head."
    )
    lora_layers: list[int] | None = option(
        None, "Indices of the decoder layers that get an adapter. Default: all of them."
    )
    max_length: int = option(
        1024, "Longest sequence in tokens, prompt and response; longer rows are an error.", check=at_least(1)
    )
    max_tokens_per_micro_batch: int = option(
        0, "Tokens in one forward and backward. Changes memory and speed, not the result. 0: 1024 on a CPU, 4096 on a "
        "GPU.",
        check=zero_or_more("by the device"), resume="rounding",
    )  # fmt: skip
    auto_find_batch_size: bool = option(
        False, "Halve max_tokens_per_micro_batch where memory is not enough, and go on.", resume="rounding"
    )
    activation_checkpointing: bool | None = option(
        None, "Compute activations again in backward instead of keeping them: less memory, more time.",
        resume="rounding",
    )  # fmt: skip
    gradient_checkpointing: bool | None = option(
        None, "The same as activation_checkpointing, under its older name.", resume="rounding"
    )
    dataset_name: str | None = option(None, "A JSONL, CSV or Parquet file, or a hub name.")
    dataset_format: str | None = option(
        None, "Format of the rows: oasst, pandalm or sgd; default: told from the columns."
    )
    on_bad_row: Literal["raise", "skip"] = option(
        "raise", "A bad row stops the run (raise), or is counted and reported (skip)."
    )
    chat_template_path: str | None = option(
        None, "A Jinja chat template file, for a tokenizer that has none of its own."
    )
    resume: str | None = option(
        None, "auto: go on from the newest whole checkpoint in output_dir. Or the path of a checkpoint.",
        resume="free", read="train",
    )  # fmt: skip
    ddp_timeout: int = option(
        600, "Seconds that the processes of a run wait for one of them, before they end with an error.",
        check=at_least(1), resume="free",
    )  # fmt: skip
    disable_tqdm: bool = option(False, "Show no progress.", resume="free", read="train")
    save_strategy: Literal["steps", "no"] = option(
        "steps", "steps: a checkpoint every save_steps steps and after the last. no: none.", resume="free", read="step"
    )
    save_steps: float = option(
        100, "Steps from one checkpoint to the next; below 1, their share of all steps.", check=above(0),
        resume="free", read="train",
    )  # fmt: skip
    save_total_limit: int | None = option(
        2, "Newest checkpoints that are kept, beside the best; nothing: all.", check=at_least(1),
        resume="free", read="step",
    )  # fmt: skip
    metric_for_best_model: str | None = option(
        None, "Keep the checkpoint at which this metric of metrics.jsonl was best, too.", resume="free"
    )
    greater_is_better: bool | None = option(
        None, "Whether more of that metric is better. Default: yes, unless its name ends with loss.", resume="free"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.output_dir = os.path.expanduser(self.output_dir)
        if self.activation_checkpointing is None:
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        self.gradient_checkpointing = self.activation_checkpointing
        fill_by_device(self, max_tokens_per_micro_batch=BY_DEVICE["training tokens"])
        self._check_schedule()
        self._check_saving()
        several = "False in a single process: torchrun or accelerate launch start several, which divide the base"
        self.require(not self.shard_base or world_size() > 1, "shard_base", several)
        self.require(not self.shard_base or self.use_peft, "shard_base", "False with use_peft=False: no base is frozen")
        self.require(
            not (self.shard_base and self.auto_find_batch_size),
            "auto_find_batch_size", "False with shard_base, where all processes take the same micro-batches",
        )  # fmt: skip

    @property
    def batch_size(self) -> int:
        """Rows of an optimiser step over all processes; in PPO, responses of a rollout."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size()

    def count_warmup(self, steps: int) -> int:
        """Warmup steps of `steps` in all."""
        return int(self.warmup_steps) if self.warmup_steps >= 1 else math.ceil(steps * self.warmup_steps)

    def _check_schedule(self) -> None:
        given = self.lr_scheduler_kwargs
        if isinstance(given, str):
            try:
                self.lr_scheduler_kwargs = json.loads(given)
            except ValueError as error:
                raise UsageError(f"lr_scheduler_kwargs={given!r} cannot be read: expected JSON ({error}).") from error
        given = self.lr_scheduler_kwargs
        self.require(given is None or isinstance(given, dict), "lr_scheduler_kwargs", "a mapping of names to values")

    def _check_saving(self) -> None:
        whole = self.save_steps < 1 or self.save_steps == int(self.save_steps)
        self.require(whole, "save_steps", "a whole number, or a share below 1")
        best = self.metric_for_best_model
        self.require(best is None or self.save_strategy != "no", "metric_for_best_model", "nothing without checkpoints")
        self.require(
            best is not None or self.greater_is_better is None,
            "greater_is_better", "nothing without metric_for_best_model",
        )  # fmt: skip
        if best is not None and self.greater_is_better is None:
            self.greater_is_better = not best.endswith("loss")


@dataclass
class InferenceConfig(Config):
    """Prompts, sampling, and how to compute."""

    dataset_name: str | None = option(None, "Prompts: a JSONL, CSV or Parquet file, or a hub name.")
    dataset_format: str | None = same(StageConfig, "dataset_format")
    on_bad_row: Literal["raise", "skip"] = same(StageConfig, "on_bad_row")
    chat_template_path: str | None = same(StageConfig, "chat_template_path")
    max_prompts: int | None = option(None, "Use only the first so many prompts.", check=at_least(1))
    response_length: int = option(128, "Most tokens of a response.", check=at_least(1))
    stop: list[str] = option(
        [], "Strings that end a response, which keeps the token that completes one; as well as EOS.", check=NOT_EMPTY
    )
    temperature: float = option(0.7, "Sampling temperature; 0 is greedy.", check=zero_or_more("greedy"))
    seed: int = option(0, "Seed of the sampling; prompt i has a seed of its own.")
    max_rollout_batch: int = option(
        0, "Sequences decoded together. Memory and speed only. 0: 32 on a CPU, 256 on a GPU.",
        check=zero_or_more("by the device"),
    )  # fmt: skip
    max_kv_cache_gb: float | None = option(
        None, "Most GB of keys and values; more sequences wait. Default: half of the free memory.", check=above(0)
    )
    max_tokens_per_micro_batch: int = option(
        0, "Tokens in one forward. Memory and speed only. 0: 2048 on a CPU, 16384 on a GPU.",
        check=zero_or_more("by the device"),
    )  # fmt: skip
    dtype: Literal["auto", "bfloat16", "float32"] = option(
        "auto", "Compute dtype. auto: bfloat16 where the hardware multiplies it."
    )
    use_cpu: bool = same(StageConfig, "use_cpu")

    def __post_init__(self) -> None:
        super().__post_init__()
        fill_by_device(
            self, max_rollout_batch=BY_DEVICE["responses"], max_tokens_per_micro_batch=BY_DEVICE["inference tokens"]
        )


def fill_by_device(config: StageConfig | InferenceConfig, **values: dict[str, int]) -> None:
    """Give the named fields that are 0 their value for the device that the config computes on."""
    for name, by_device in values.items():
        if getattr(config, name) == 0:
            setattr(config, name, by_device[choose_device(config.use_cpu).type])


def _with_default(known: Option, own: Any) -> Option:
    """`known` with the default of `own` (a value, or a plain dataclass field), and with its help if it has one."""
    made = copy(known)
    if isinstance(own, list):
        own = field(default_factory=own.copy)
    if not isinstance(own, Field):
        own = field(default=own)
    made.default, made.default_factory = own.default, own.default_factory
    made.metadata = own.metadata or known.metadata
    return made


def field_names(config_class: type) -> list[str]:
    """Fields that a user can set."""
    return [f.name for f in fields(config_class) if f.init]


def fields_that_are(config_class: type, *meanings: Resume) -> list[str]:
    """Fields of one of these meanings for a resume."""
    return [f.name for f in fields(config_class) if isinstance(f, Option) and f.resume in meanings]


def fields_read(config_class: type, *times: Read) -> list[str]:
    """Fields that are read for the last time at one of these times."""
    return [f.name for f in fields(config_class) if isinstance(f, Option) and f.read in times]


def default_of(config_class: type, name: str) -> Any:
    """The default of one of its fields."""
    f = config_class.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return f.default if f.default_factory is MISSING else f.default_factory()


def unknown_field(name: str, config_class: type, where: str, otherwise: str = "--help lists the fields") -> str:
    """What to say of a name that `config_class` does not have, given in `where`; otherwise: where nothing is near."""
    instead = getattr(config_class, "instead", {}).get(name)
    hint = f"use {instead}" if instead else field_hint(name, field_names(config_class)) or otherwise
    return f"unknown field {name!r} in {where}; {hint}{'' if hint.endswith('?') else '.'}"


def check_kinds(config: Any, names: Iterable[str]) -> None:
    """Raise `UsageError` for the first of the named fields whose value does not fit its annotation.

    Known kinds: bool, int, float (an int is one), str, classes, `list` of these, `Literal`, and unions.
    """
    hints = get_type_hints(type(config))
    for name in names:
        value = getattr(config, name)
        if not _fits(value, hints[name]):
            known = value_hint(name, value)
            hint = f" {known[0].upper()}{known[1:]}." if known else ""
            raise UsageError(f"{name}={value!r} cannot be used: expected {_words(hints[name])}.{hint}")


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if origin is list:
        return isinstance(value, list) and all(_fits(part, get_args(kind)[0]) for part in value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, origin or kind)


def _words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(map(str, get_args(kind)))
    if origin is list:
        return f"a list, each {_words(get_args(kind)[0])}"
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(kind, getattr(origin or kind, "__name__", str(kind)))
