"""`PPOConfig` of the trainer: the fields and defaults of TRL 1.12's, translated into the engine's `PPORunConfig`.

Fields of the command line that models and data given as objects leave no use for (`dataset_name`, `dtype`, `lora_r`)
are no arguments here, so that the class stands beside a script's own dataclasses in one `HfArgumentParser`. What
becomes of transformers' and TRL's own fields is in `rlhf_fast/trainer/fields.py`. Behind it stand the other dataclasses
and helpers that a TRL script parses, for a machine without TRL.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from peft import LoraConfig
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from rlhf_fast.runtime.config import Read, StageConfig, at_least, default_of, fields_read, option, same, zero_or_more
from rlhf_fast.runtime.distributed import world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.hints import field_hint
from rlhf_fast.runtime.launch import start
from rlhf_fast.runtime.shown import notices
from rlhf_fast.train.config import PRESETS, PPOOptions, PPORunConfig
from rlhf_fast.trainer.fields import FACTS, SAME_OPTIMISER, STRATEGIES, fields_used

OUTSIDE = frozenset(fields_used("outside", "unneeded", "inert"))
"""Inherited fields that are accepted and never reach the engine."""


@dataclass
class PPOConfig(PPOOptions, TrainingArguments):
    """TRL's `PPOConfig`. `preset="trl"` is the default: its formulas, past EOS unless a stop token is named."""

    instead: ClassVar[dict[str, str]] = {name: fact.instead for name, fact in FACTS.items() if fact.instead}

    preset: Literal["rlhf_fast", "trl", "openrlhf", "verl"] = option(
        "trl", "Whose formulas are taken, in the fields that have their default values."
    )
    output_dir: str | None = option(None, "Where checkpoints and metrics.jsonl are written.")
    stop_token: Literal["eos", "none"] | None = option(  # type: ignore[assignment]
        None, "eos: a response ends at the tokenizer's EOS. Default: it runs to its budget."
    )
    sft_model_path: str | None = option("EleutherAI/pythia-160m", "For the script: where it loads the policy from.")
    reward_model_path: str | None = option(
        "EleutherAI/pythia-160m", "For the script: where it loads the reward model from."
    )
    dataset_num_proc: int | None = option(None, "For the script: processes with which it tokenises.")
    local_rollout_forward_batch_size: int = option(
        64, "Sequences decoded together. Memory and speed only.", check=at_least(1)
    )
    num_sample_generations: int = option(
        10, "How often in a run completions of eval_dataset are printed; 0: never.", check=zero_or_more("never")
    )
    model_adapter_name: str | None = option(None, "Which adapter of a PeftModel is trained. Default: its active one.")
    ref_adapter_name: str | None = option(
        None, "Which adapter of a PeftModel is the reference. Default: none, the bare base."
    )
    ds3_gather_for_generation: bool = option(True, "No effect: DeepSpeed is not used.")
    bf16: bool | None = option(  # type: ignore[assignment]
        None, "true: compute a frozen base in bfloat16; false: in float32. Default: as it was loaded."
    )
    logging_steps: float = option(1, "Iterations from one on_log to the next; below 1, their share of all.")
    eval_steps: float | None = option(10, "Iterations from one evaluation to the next; below 1, their share of all.")
    save_steps: float = option(500, "Iterations from one checkpoint to the next; below 1, their share of all.")
    save_total_limit: int | None = option(None, "Newest checkpoints kept. Default: all.")
    save_strategy: SaveStrategy | str = option(
        "steps", "steps: a checkpoint every save_steps and after the last. epoch: in each pass. no: none."
    )
    world_size: int | None = option(None, "Computed: the number of processes.")
    num_total_batches: int | None = option(None, "Set by the trainer: iterations.")
    micro_batch_size: int | None = option(None, "Computed: per_device_train_batch_size * world_size.")
    local_batch_size: int | None = option(None, "Computed: batch_size / world_size.")
    batch_size: int | None = option(
        None, "Computed: per_device_train_batch_size * gradient_accumulation_steps * world_size."
    )
    local_mini_batch_size: int | None = option(None, "Computed: local_batch_size / num_mini_batches, rounded down.")
    mini_batch_size: int | None = option(None, "Computed: batch_size / num_mini_batches.")

    max_length: int = same(StageConfig, "max_length")
    max_tokens_per_micro_batch: int = same(StageConfig, "max_tokens_per_micro_batch")
    auto_find_batch_size: bool = same(StageConfig, "auto_find_batch_size")
    activation_checkpointing: bool | None = same(StageConfig, "activation_checkpointing")
    gradient_checkpointing: bool | None = same(StageConfig, "gradient_checkpointing")
    on_bad_row: Literal["raise", "skip"] = same(StageConfig, "on_bad_row")
    resume: str | None = same(StageConfig, "resume")
    ddp_timeout: int = same(StageConfig, "ddp_timeout")
    metric_for_best_model: str | None = same(StageConfig, "metric_for_best_model")
    greater_is_better: bool | None = same(StageConfig, "greater_is_better")

    def __post_init__(self) -> None:
        self._refuse_both_stops()
        self.stop_token = self.stop_token or "none"
        for name, fact in FACTS.items():
            if fact.parsed is not None and getattr(self, name) is fact.parsed[0]:
                setattr(self, name, fact.parsed[1])
        self._compute_sizes()
        self._say_what_is_unneeded()
        self.accelerator_config = None  # of another kind once transformers has read it
        self.check()
        start(use_cpu=self.use_cpu, timeout=self.ddp_timeout)  # before transformers does, for the timeout
        self._refuse_unserved()
        if self.activation_checkpointing is None:
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        self.gradient_checkpointing = False  # a warning of transformers that the name is old has no use here
        try:
            TrainingArguments.__post_init__(self)
        except ValueError as error:
            raise UsageError(f"{str(error).rstrip('.')}. Change that field.") from error
        for name in STRATEGIES:
            self.require(getattr(self, name) in ("steps", "epoch", "no"), name, "epoch, steps or no")
        self._run = self._translate()
        for name in TRANSLATED:
            if self._as_run(name) != (value := getattr(self._run, name)):  # a preset set it
                setattr(self, name, value)
        self.remember()

    def _translate(self) -> PPORunConfig:
        """The engine's config of these fields. Raises `UsageError`."""
        given = {name: self._as_run(name) for name in TRANSLATED}
        return PPORunConfig(**given, max_rollout_batch=self.local_rollout_forward_batch_size)

    def _as_run(self, name: str) -> Any:
        value = getattr(self, name)
        return "steps" if name == "save_strategy" and value == "epoch" else value

    def run_config(self) -> PPORunConfig:
        """The engine's config of the fields as they are now, and of no other config."""
        config = copy.copy(self._run)
        self.take_over(config, "made", "train", "step")
        return config

    def take_over(self, config: PPORunConfig, *read: Read) -> None:
        """Set those fields of `config` that are read at one of these times to what they are here, and check them."""
        for name in TRANSLATED.intersection(fields_read(PPORunConfig, *read)):
            setattr(config, name, self._as_run(name))
        config.check()

    def beside_run(self) -> dict[str, Any]:
        """What the result depends on beside the engine's config."""
        return {name: getattr(self, name) for name in fields_used("model")}

    def settle(self) -> None:
        """Take up fields that were set since construction, as if they had been given then. Raises `UsageError`."""
        changed = self._changed()
        if not changed:
            return
        if "preset" in changed:  # what the old one set is its no more
            for name, value in PRESETS[self._kept["preset"]].items():
                if getattr(self, name) == value:
                    setattr(self, name, default_of(type(self), name))
        for name in set(fields_used("computed")) - set(changed):
            setattr(self, name, None)
        self.__post_init__()

    def remember(self) -> None:
        """Note the values as they are: what `settle` and `refuse_changes` compare with."""
        self._kept = {f.name: copy.copy(getattr(self, f.name)) for f in fields(self)}

    def refuse_changes(self, *, at_start: bool = False) -> None:
        """Raise `UsageError` for a field set since the values were noted, unless it is read later than now."""
        live, at_train = fields_read(PPORunConfig, "step"), fields_read(PPORunConfig, "train")
        later = OUTSIDE | set(fields_used("script")) | set(live) | set(at_train if at_start else [])
        for name in self._changed():
            if name not in later:
                raise UsageError(
                    f"{name}={getattr(self, name)!r} was set on args after PPOTrainer was made, where it has no "
                    f"effect; set it before. Obeyed at any time: {', '.join(sorted(live))}."
                )

    def _changed(self) -> list[str]:
        return [name for name, value in self._kept.items() if getattr(self, name) != value]

    def _refuse_both_stops(self) -> None:
        if self.stop_token == "eos" and self.stop_token_id is not None:
            raise UsageError(f"stop_token='eos' and stop_token_id={self.stop_token_id} are both set; set one of them.")

    def _compute_sizes(self) -> None:
        """Fill in the sizes that follow from others; a line says where one was given that does not."""
        world = world_size()
        local = self.per_device_train_batch_size * self.gradient_accumulation_steps
        batch = local * world
        if self.num_mini_batches < 1 or batch % self.num_mini_batches:
            raise UsageError(
                f"the batch of {batch} responses (per_device_train_batch_size * gradient_accumulation_steps * "
                f"{world} processes) is no "
                f"multiple of num_mini_batches={self.num_mini_batches}; change one of them."
            )
        mini = batch // self.num_mini_batches
        sizes = {
            "world_size": world, "micro_batch_size": self.per_device_train_batch_size * world,
            "local_batch_size": local, "batch_size": batch, "local_mini_batch_size": local // self.num_mini_batches,
            "mini_batch_size": mini,
        }  # fmt: skip
        for name, value in sizes.items():
            if getattr(self, name) not in (None, value):
                notices.warning(
                    "%s=%s has no effect, here as in TRL: it is %d by per_device_train_batch_size, "
                    "gradient_accumulation_steps, num_mini_batches and the number of processes, which say it.",
                    name, getattr(self, name), value,
                )  # fmt: skip
            setattr(self, name, value)

    def _say_what_is_unneeded(self) -> None:
        for name, value in self._set_among(fields_used("unneeded")):
            if value != {"use_reentrant": False}:
                notices.warning("%s=%r has no effect here: %s.", name, value, FACTS[name].why)
        for name, value in self._set_among(fields_used("inert")):
            if name == "greater_is_better" and self.metric_for_best_model is not None:
                continue
            if name == "tf32" and torch.cuda.is_available() and not self.use_cpu:
                continue  # transformers switches it on for the whole process
            notices.warning("%s=%r has no effect, here as in TRL's PPO: %s.", name, value, FACTS[name].why)
            if FACTS[name].set_back:
                setattr(self, name, default_of(type(self), name))
        optim = getattr(self.optim, "value", self.optim)
        if optim not in SAME_OPTIMISER:
            raise UsageError(f"optim={optim!r} is not used: AdamW is, unless you pass {self.instead['optim']}.")

    def _set_among(self, names: Iterable[str]) -> list[tuple[str, Any]]:
        """Those of the fields that have another value than their default, or than transformers makes of it."""
        known = [name for name in names if name in type(self).__dataclass_fields__]  # not in every transformers
        values = {name: getattr(self, name) for name in known}
        return [
            (name, value)
            for name, value in values.items()
            if value != default_of(type(self), name) and value != _settled().get(name)
        ]

    def _refuse_unserved(self) -> None:
        inherited = [f.name for f in fields(TrainingArguments) if f.init]
        for name, value in self._set_among(name for name in inherited if name not in SERVED):
            instead = self.instead.get(name)
            hint = f"use {instead} instead" if instead else field_hint(name, [f.name for f in fields(self) if f.init])
            raise UsageError(
                f"{name}={value!r} has no effect in {type(self).__name__} and is refused; {hint or 'remove it'}."
            )

    def by_steps(self, prompts: int) -> PPOConfig:
        """A copy in which every strategy that is `epoch` is `steps`, an event every so many iterations as a pass over
        `prompts` prompts has; the fields themselves keep what was written."""
        counted = copy.copy(self)
        for name, steps in STRATEGIES.items():
            if getattr(self, name) == "epoch":
                setattr(counted, name, "steps")
                setattr(counted, steps, max(1, round(prompts / int(self.batch_size or 1))))
        return counted


TRANSLATED = {f.name for f in fields(PPORunConfig)} & {f.name for f in fields(PPOConfig)} - set(fields_used("script"))
"""Fields that mean what those of the engine's config of the same name mean."""
SERVED = TRANSLATED | OUTSIDE | set(fields_used("script", "computed", "model"))


@cache
def _settled() -> dict[str, Any]:
    """What `TrainingArguments` makes of its own defaults; `dataclasses.replace` hands these in again."""
    return vars(TrainingArguments(use_cpu=True))


@dataclass
class ScriptArguments:
    """Which dataset the script loads."""

    dataset_name: str | None = field(default=None, metadata={"help": "Name or path of the dataset."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the dataset."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})


@dataclass
class ModelConfig:
    """How the script loads its models, and the LoRA adapter that is trained."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Name or path of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of the model."})
    dtype: str | None = field(default="float32", metadata={"help": "dtype in which models are loaded, or auto."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Whether the script may run a model's own code."})
    attn_implementation: str | None = field(default=None, metadata={"help": "Attention at loading; training packs."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter; else all weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapter's scale is lora_alpha / lora_r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Switched off in PPO, as in TRL."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Layers that get an adapter."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "Written to the adapter's file."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale lora_alpha / sqrt(lora_r)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Refused: plain weights are trained here."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Refused: plain weights are trained here."})


def get_peft_config(model_args: ModelConfig) -> LoraConfig | None:
    """None unless `use_peft`."""
    if not model_args.use_peft:
        return None
    targets = model_args.lora_target_modules
    return LoraConfig(
        task_type=model_args.lora_task_type, r=model_args.lora_r, lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout, use_rslora=model_args.use_rslora, bias="none",
        target_modules=targets[0] if targets is not None and len(targets) == 1 else targets,
    )  # fmt: skip


def get_quantization_config(model_args: ModelConfig) -> None:
    """None. Raises `UsageError` where the script asks for quantised weights."""
    if model_args.load_in_8bit or model_args.load_in_4bit:
        raise UsageError("load_in_8bit and load_in_4bit are not supported: adapters are trained on plain weights.")


def get_kbit_device_map() -> None:
    """None: the trainer places the models."""
