"""`PPOConfig` of the trainer: the fields and defaults of TRL 1.12's, translated into the engine's `PPORunConfig`.

Fields of the command line that models and data given as objects leave no use for (`dataset_name`, `dtype`, `lora_r`)
are no arguments here, so that the class stands beside a script's own dataclasses in one `HfArgumentParser`. What the
tables say of a field is about transformers' and TRL's; the engine's own carry their facts themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from rlhf_fast.runtime.config import Read, StageConfig, at_least, default_of, fields_read, option, same, zero_or_more
from rlhf_fast.runtime.distributed import world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.hints import field_hint
from rlhf_fast.runtime.launch import start
from rlhf_fast.runtime.shown import notices
from rlhf_fast.train.config import PRESETS, PPOOptions, PPORunConfig

EVENTS = frozenset({
    "report_to", "run_name", "project", "trackio_space_id", "logging_steps", "logging_strategy", "logging_first_step",
    "eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size", "do_train", "do_eval", "do_predict",
    "resume_from_checkpoint", "trackio_bucket_id", "trackio_static_space_id",
})  # fmt: skip
"""Inherited fields that callbacks, the evaluation or the script itself read."""
HUB = frozenset({"push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "hub_revision"})
UNNEEDED = {
    "gradient_checkpointing_kwargs": "recomputation is non-reentrant",
    "activation_checkpointing_kwargs": "recomputation is non-reentrant",
    "remove_unused_columns": "columns beside the prompt go to reward functions",
    "dataloader_num_workers": "prompts are tokenised once, before training",
    "dataloader_drop_last": "a batch is always full",
    "ddp_find_unused_parameters": "gradients are summed in one exchange, whichever parameters have one",
    "torch_empty_cache_steps": "nothing is padded, so the cache does not fragment",
    "use_liger_kernel": "logits are never stored",
    "log_level": "logging follows Python's own settings",
}
"""Fields that TRL takes and on which no result depends, and why; setting one is answered with one line."""
INERT = {
    "max_steps": "total_episodes says how long a run is",
    "data_seed": "seed orders the prompts",
    "load_best_model_at_end": "metric_for_best_model keeps the best checkpoint, which is not loaded",
    "greater_is_better": "metric_for_best_model is not set",
    "save_only_model": "a checkpoint holds what a run needs to go on",
    "enable_jit_checkpoint": "a signal to stop saves the run anyway",
    "full_determinism": "a seed and the number of processes give the same run on the same device",
    "tf32": "a CPU has no such format",
    "hub_strategy": "nothing is uploaded before push_to_hub()", "hub_always_push": "push_to_hub() uploads",
    "eval_on_start": "call evaluate() before train()",
    "optim_args": "AdamW has its own fields",
    "torch_compile": "the kernels are the engine's own", "torch_compile_backend": "the kernels are the engine's own",
    "torch_compile_mode": "the kernels are the engine's own", "liger_kernel_config": "logits are never stored",
    "neftune_noise_alpha": "rollout and update see the same network",
    "label_smoothing_factor": "the loss is PPO's", "label_names": "the loss is PPO's",
    "ddp_backend": "Gloo connects CPUs, NCCL GPUs", "local_rank": "the launcher numbers the processes",
    "accelerator_config": "the batches are the engine's own", "use_cache": "rollouts always cache keys and values",
    "ignore_data_skip": "a run that is resumed goes on with the next prompts",
} | dict.fromkeys((
    "bf16_full_eval", "fp16_full_eval", "prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object",
    "eval_accumulation_steps", "include_for_metrics", "batch_eval_metrics",
), "an evaluation samples responses and scores them") | dict.fromkeys((
    "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context",
    "dataloader_in_order", "dataloader_pin_memory", "train_sampling_strategy", "length_column_name", "group_by_length",
), "prompts are tokenised once, before training, and drawn in the order of the seed") | dict.fromkeys((
    "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "average_tokens_across_devices",
), "gradients are summed in one exchange") | dict.fromkeys((
    "log_on_each_node", "logging_nan_inf_filter", "include_num_input_tokens_seen", "include_tokens_per_second",
    "log_level_replica", "skip_memory_metrics", "debug", "save_on_each_node", "restore_callback_states_from_checkpoint",
), "logs and states are those of PPO's own loop")  # fmt: skip
"""Fields that have no effect in TRL's PPO either, and what is so instead; setting one is answered with one line."""
ACTED_ON = frozenset({
    "load_best_model_at_end", "greater_is_better", "tf32", "ddp_backend", "torch_compile", "torch_compile_backend",
    "torch_compile_mode",
})  # fmt: skip
"""Those of them that are set back, as `TrainingArguments` would act on them."""
SAME_OPTIMISER = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_apex_fused", "adamw_hf")
"""Values of `optim` that are implementations of AdamW, which is what is used."""
BY_EPOCH = {"logging_strategy": "logging_steps", "eval_strategy": "eval_steps", "save_strategy": "save_steps"}
"""Strategies that may be `epoch`, once in each pass over the prompts, and the field that counts their iterations."""
INSTEAD = {
    "fp16": "bf16", "optim": "optimizers=(optimizer, None) of PPOTrainer", "dtype": "bf16, or models loaded in it",
    "max_rollout_batch": "local_rollout_forward_batch_size", "dataset_name": "train_dataset of PPOTrainer",
    "dataset_format": "train_dataset of PPOTrainer", "chat_template_path": "processing_class.chat_template",
    "reward_funcs": "reward_model of PPOTrainer, a function if you like", "use_peft": "peft_config of PPOTrainer",
    "reward_weights": "reward_model of PPOTrainer, a function that adds them up",
} | dict.fromkeys(("lora_r", "lora_alpha", "lora_target_modules", "lora_layers"), "peft_config of PPOTrainer") \
  | dict.fromkeys(("profile", "shard_base"), "`rlhf-fast ppo`, which has it")  # fmt: skip
"""What serves a field that is not here."""
COMPUTED = frozenset({
    "world_size", "num_total_batches", "micro_batch_size", "local_batch_size", "local_mini_batch_size", "batch_size",
    "mini_batch_size",
})  # fmt: skip
"""Fields that follow from others; TRL fills them in, and so does this class."""
FOR_THE_SCRIPT = frozenset({
    "sft_model_path", "reward_model_path", "dataset_num_proc", "num_sample_generations",
    "local_rollout_forward_batch_size", "ds3_gather_for_generation",
})  # fmt: skip
"""Fields on which no result of the trainer depends."""
BESIDE = ("bf16", "model_adapter_name", "ref_adapter_name")
"""Fields that the models given are read by, and that a checkpoint has to fit."""
OUTSIDE = EVENTS | HUB | {"optim"} | set(UNNEEDED) | set(INERT)
"""Inherited fields that are accepted and never reach the engine."""
STRATEGIES = ("steps", "epoch", "no")

_AS_PARSED: dict[str, tuple[Any, Any]] = {"include_num_input_tokens_seen": (False, "no"), "debug": (None, "")}
"""Inherited fields that `HfArgumentParser` hands over as something else than their defaults when they are left out."""


@dataclass
class PPOConfig(PPOOptions, TrainingArguments):
    """TRL's `PPOConfig`. `preset="trl"` is the default: its formulas, past EOS unless a stop token is named."""

    instead: ClassVar[dict[str, str]] = INSTEAD

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
    ds3_gather_for_generation: bool = option(True, "DeepSpeed is not used: only true is accepted.")
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
        for name, (parsed, default) in _AS_PARSED.items():
            if getattr(self, name) is parsed:
                setattr(self, name, default)
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
        self.require(self.ds3_gather_for_generation, "ds3_gather_for_generation", "true: DeepSpeed is not used here")
        for name in BY_EPOCH:
            self.require(getattr(self, name) in STRATEGIES, name, "epoch, steps or no")
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
        return {name: getattr(self, name) for name in BESIDE}

    def settle(self) -> None:
        """Take up fields that were set since construction, as if they had been given then. Raises `UsageError`."""
        changed = self._changed()
        if not changed:
            return
        if "preset" in changed:  # what the old one set is its no more
            for name, value in PRESETS[self._kept["preset"]].items():
                if getattr(self, name) == value:
                    setattr(self, name, default_of(type(self), name))
        for name in COMPUTED - set(changed):
            setattr(self, name, None)
        self.__post_init__()

    def remember(self) -> None:
        """Note the values as they are: what `settle` and `refuse_changes` compare with."""
        self._kept = {f.name: copy.copy(getattr(self, f.name)) for f in fields(self)}

    def refuse_changes(self, *, at_start: bool = False) -> None:
        """Raise `UsageError` for a field set since the values were noted, unless it is read later than now."""
        live, at_train = fields_read(PPORunConfig, "step"), fields_read(PPORunConfig, "train")
        later = OUTSIDE | FOR_THE_SCRIPT | set(live) | set(at_train if at_start else [])
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
        for name, value in self._set_among(UNNEEDED):
            if value != {"use_reentrant": False}:
                notices.warning("%s=%r has no effect here: %s.", name, value, UNNEEDED[name])
        for name, value in self._set_among(INERT):
            if name == "greater_is_better" and self.metric_for_best_model is not None:
                continue
            if name == "tf32" and torch.cuda.is_available() and not self.use_cpu:
                continue  # transformers switches it on for the whole process
            notices.warning("%s=%r has no effect, here as in TRL's PPO: %s.", name, value, INERT[name])
            if name in ACTED_ON:
                setattr(self, name, default_of(type(self), name))
        optim = getattr(self.optim, "value", self.optim)
        if optim not in SAME_OPTIMISER:
            raise UsageError(f"optim={optim!r} is not used: AdamW is, unless you pass {INSTEAD['optim']}.")

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
            instead = INSTEAD.get(name)
            hint = f"use {instead} instead" if instead else field_hint(name, [f.name for f in fields(self) if f.init])
            raise UsageError(
                f"{name}={value!r} has no effect in {type(self).__name__} and is refused; {hint or 'remove it'}."
            )

    def by_steps(self, prompts: int) -> PPOConfig:
        """A copy in which every strategy that is `epoch` is `steps`, an event every so many iterations as a pass over
        `prompts` prompts has; the fields themselves keep what was written."""
        counted = copy.copy(self)
        for name, steps in BY_EPOCH.items():
            if getattr(self, name) == "epoch":
                setattr(counted, name, "steps")
                setattr(counted, steps, max(1, round(prompts / int(self.batch_size or 1))))
        return counted


TRANSLATED = {f.name for f in fields(PPORunConfig)} & {f.name for f in fields(PPOConfig)} - FOR_THE_SCRIPT
"""Fields that mean what those of the engine's config of the same name mean."""
SERVED = TRANSLATED | OUTSIDE | FOR_THE_SCRIPT | COMPUTED | set(BESIDE)


@cache
def _settled() -> dict[str, Any]:
    """What `TrainingArguments` makes of its own defaults; `dataclasses.replace` hands these in again."""
    return vars(TrainingArguments(use_cpu=True))
