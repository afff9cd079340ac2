"""`StageConfig`: what the configs of all stages share, on transformers' `TrainingArguments`.

Of the inherited fields, those in `SERVED` do what transformers documents. Any other that is set to something else than
its default raises: no option is accepted and then ignored.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal

from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from rlhf_fast.runtime.distributed import world_size
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.fields import KnownFields, check_kinds, field_names
from rlhf_fast.runtime.hints import field_hint
from rlhf_fast.runtime.launch import start

SERVED = frozenset({
    "output_dir", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "learning_rate",
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "gradient_checkpointing", "activation_checkpointing", "seed", "use_cpu",
    "disable_tqdm", "ddp_timeout", "save_strategy", "save_steps", "save_total_limit", "metric_for_best_model",
    "greater_is_better", "auto_find_batch_size",
})  # fmt: skip
_AT_LEAST_ONE = (
    "max_length", "max_tokens_per_micro_batch", "lora_r", "gradient_accumulation_steps", "per_device_train_batch_size",
)  # fmt: skip


@dataclass
class StageConfig(KnownFields, TrainingArguments):
    """Fields of every stage. `served` names the inherited fields that this stage uses."""

    stage: ClassVar[str] = ""
    """The verb of the command line that runs it."""
    served: ClassVar[frozenset[str]] = SERVED
    instead: ClassVar[dict[str, str]] = {}
    """What to use in place of an inherited field that is not served, before what `rlhf_fast.runtime.hints` says."""
    strategies: ClassVar[tuple[str, ...]] = ("no", "steps")
    """Values of `save_strategy`."""
    free: ClassVar[frozenset[str]] = frozenset()
    """Fields of a stage's own on which no result depends, nor whether a checkpoint is of the same run."""

    dtype: Literal["auto", "bfloat16", "float32"] = field(
        default="auto",
        metadata={"help": "Compute dtype of the base. auto: bfloat16 where the hardware multiplies it, else float32."},
    )
    shard_base: bool = field(
        default=False,
        metadata={"help": "Divide the layers of the frozen base among the processes; each is gathered when it is run."},
    )
    use_peft: bool = field(
        default=True, metadata={"help": "Train a LoRA adapter (default) or, if false, all weights of the model."}
    )
    lora_r: int = field(default=16, metadata={"help": "Rank of the LoRA adapter."})
    lora_alpha: float = field(default=32, metadata={"help": "LoRA scale is lora_alpha / lora_r."})
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={"help": "Layers that get an adapter, by name. Default: every linear layer but the head."},
    )
    lora_layers: list[int] | None = field(
        default=None, metadata={"help": "Indices of the decoder layers that get an adapter. Default: all of them."}
    )
    max_length: int = field(
        default=1024, metadata={"help": "Longest sequence in tokens, prompt and response; longer rows are an error."}
    )
    max_tokens_per_micro_batch: int = field(
        default=1024, metadata={"help": "Tokens in one forward and backward. Changes memory and speed, not the result."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A JSONL, CSV or Parquet file, or a hub name."})
    dataset_format: str | None = field(
        default=None, metadata={"help": "Format of the rows: oasst, pandalm or sgd; default: told from the columns."}
    )
    on_bad_row: Literal["raise", "skip"] = field(
        default="raise", metadata={"help": "A bad row stops the run (raise), or is counted and reported (skip)."}
    )
    chat_template_path: str | None = field(
        default=None, metadata={"help": "A Jinja chat template file, for a tokenizer that has none of its own."}
    )
    auto_find_batch_size: bool = field(
        default=False, metadata={"help": "Halve max_tokens_per_micro_batch where memory is not enough, and go on."}
    )
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={"help": "Compute activations again in backward instead of keeping them: less memory, more time."},
    )
    gradient_checkpointing: bool | None = field(
        default=None, metadata={"help": "The same as activation_checkpointing, under its older name."}
    )
    resume: str | None = field(
        default=None,
        metadata={"help": "auto: go on from the newest whole checkpoint in output_dir. Or the path of a checkpoint."},
    )
    ddp_timeout: int = field(
        default=600,
        metadata={"help": "Seconds that the processes of a run wait for one of them, before they end with an error."},
    )
    save_strategy: SaveStrategy | str = field(
        default="steps",
        metadata={"help": "steps: a checkpoint every save_steps steps and after the last. no: none."},
    )
    save_steps: float = field(
        default=100, metadata={"help": "Steps from one checkpoint to the next; below 1, their share of all steps."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Newest checkpoints that are kept, beside the best; nothing: all."}
    )
    metric_for_best_model: str | None = field(
        default=None, metadata={"help": "Keep the checkpoint at which this metric of metrics.jsonl was best, too."}
    )
    greater_is_better: bool | None = field(
        default=None,
        metadata={"help": "Whether more of that metric is better. Default: yes, unless its name ends with loss."},
    )

    def __post_init__(self) -> None:
        inherited = {f.name for f in fields(TrainingArguments)}
        check_kinds(self, (f.name for f in fields(self) if f.name in self.served or f.name not in inherited))
        self.require(self.ddp_timeout >= 1, "ddp_timeout", "at least 1")
        start(use_cpu=self.use_cpu, timeout=self.ddp_timeout)  # before transformers does, for the timeout
        self._refuse_unserved()
        if self.activation_checkpointing is None:
            self.activation_checkpointing = bool(self.gradient_checkpointing)
        self.gradient_checkpointing = False  # a warning of transformers that the name is old has no use here
        try:
            super().__post_init__()
        except ValueError as error:
            raise UsageError(f"{str(error).rstrip('.')}. Change that field.") from error
        for name in _AT_LEAST_ONE:
            self.require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "lora_alpha", "num_train_epochs"):
            self.require(getattr(self, name) > 0, name, "above 0")
        for name in ("weight_decay", "max_grad_norm"):
            self.require(getattr(self, name) >= 0, name, "0 (off) or more")
        several = "False in a single process: torchrun or accelerate launch start several, which divide the base"
        self.require(not self.shard_base or world_size() > 1, "shard_base", several)
        self.require(not self.shard_base or self.use_peft, "shard_base", "False with use_peft=False: no base is frozen")
        self.require(
            not (self.shard_base and self.auto_find_batch_size),
            "auto_find_batch_size", "False with shard_base, where all processes take the same micro-batches",
        )  # fmt: skip
        self._check_saving()

    @property
    def batch_size(self) -> int:
        """Rows of an optimiser step over all processes; in PPO, responses of a rollout."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * world_size()

    def require(self, condition: bool, name: str, expected: str) -> None:
        """Raise `UsageError` naming the field, its value and what was expected, unless `condition`."""
        if not condition:
            raise UsageError(f"{name}={getattr(self, name)!r} cannot be used: expected {expected}.")

    def _check_saving(self) -> None:
        *others, last = reversed(self.strategies)
        self.require(self.save_strategy in self.strategies, "save_strategy", f"{', '.join(others)} or {last}")
        self.require(self.save_steps > 0, "save_steps", "above 0")
        self.require(self.save_total_limit is None or self.save_total_limit >= 1, "save_total_limit", "at least 1")
        best = self.metric_for_best_model
        self.require(best is None or self.save_strategy != "no", "metric_for_best_model", "nothing without checkpoints")
        self.require(
            best is not None or self.greater_is_better is None,
            "greater_is_better", "nothing without metric_for_best_model",
        )  # fmt: skip

    def _refuse_unserved(self) -> None:
        for f in fields(TrainingArguments):
            if f.name in self.served or not f.init:
                continue
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            own = type(self).__dataclass_fields__[f.name]
            default = own.default if own.default is not MISSING else default
            if getattr(self, f.name) not in (default, _settled()[f.name]):
                instead = self.instead.get(f.name)
                hint = f"use {instead} instead" if instead else field_hint(f.name, field_names(type(self)))
                raise UsageError(
                    f"{f.name}={getattr(self, f.name)!r} has no effect in {type(self).__name__} and is refused; "
                    f"{hint or 'remove it'}."
                )


@cache
def _settled() -> dict[str, Any]:
    """What `TrainingArguments` makes of its own defaults; `dataclasses.replace` hands these in again."""
    return vars(TrainingArguments(use_cpu=True))
