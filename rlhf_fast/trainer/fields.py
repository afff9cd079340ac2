"""What becomes of each field of TRL's `PPOConfig` that is not one of the engine's own, of transformers'
`TrainingArguments` for the most part: one row a field. The engine's fields carry their facts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rlhf_fast.runtime.hints import table

Use = Literal["outside", "script", "model", "computed", "unneeded", "inert", "elsewhere"]


@dataclass(frozen=True)
class Fact:
    """use: what is done with the field.

        outside    callbacks, the evaluation, the hub or the script itself read it
        script     TRL's own, on which no result of the trainer depends
        model      the models given are read by it, and a checkpoint has to fit it
        computed   it follows from others; TRL fills it in, and so does `PPOConfig`
        unneeded   TRL takes it and no result here depends on it: setting it is answered with one line, which says why
        inert      it has no effect in TRL's PPO either: setting it is answered with one line, which says what is so
        elsewhere  it is no field of `PPOConfig`, or only its default is served: `instead` is what serves it

    set_back: `TrainingArguments` would act on it, so it gets its default back. by_epoch: it is a strategy that may be
    `epoch`, once in each pass over the prompts, and this field counts its iterations. parsed: (value, default) where
    `HfArgumentParser` hands over another value than the default for a field that is left out.
    """

    use: Use
    why: str = ""
    instead: str = ""
    set_back: bool = False
    by_epoch: str = ""
    parsed: tuple[Any, Any] | None = None


def unneeded(why: str) -> Fact:
    return Fact("unneeded", why)


def inert(why: str, *, set_back: bool = False, parsed: tuple[Any, Any] | None = None) -> Fact:
    return Fact("inert", why, set_back=set_back, parsed=parsed)


def elsewhere(instead: str) -> Fact:
    return Fact("elsewhere", instead=instead)


_OUTSIDE = Fact("outside")
_OWN_KERNELS = inert("the kernels are the engine's own", set_back=True)
_SAMPLES = inert("an evaluation samples responses and scores them")
_PROMPTS = inert("prompts are tokenised once, before training, and drawn in the order of the seed")
_ONE_EXCHANGE = inert("gradients are summed in one exchange")
_OWN_LOOP = "logs and states are those of PPO's own loop"

FACTS: dict[str, Fact] = table([
    # read by others
    ("report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id", _OUTSIDE),
    ("logging_steps logging_first_step eval_steps eval_delay per_device_eval_batch_size", _OUTSIDE),
    ("do_train do_eval do_predict resume_from_checkpoint", _OUTSIDE),
    ("push_to_hub hub_model_id hub_token hub_private_repo hub_revision", _OUTSIDE),
    ("logging_strategy", Fact("outside", by_epoch="logging_steps")),
    ("eval_strategy", Fact("outside", by_epoch="eval_steps")),
    ("optim", Fact("outside", instead="optimizers=(optimizer, None) of PPOTrainer")),
    ("sft_model_path reward_model_path dataset_num_proc num_sample_generations", Fact("script")),
    ("local_rollout_forward_batch_size", Fact("script")),
    ("bf16 model_adapter_name ref_adapter_name", Fact("model")),
    ("world_size num_total_batches micro_batch_size local_batch_size local_mini_batch_size", Fact("computed")),
    ("batch_size mini_batch_size", Fact("computed")),
    # TRL obeys them, and there is nothing to obey here
    ("gradient_checkpointing_kwargs activation_checkpointing_kwargs", unneeded("recomputation is non-reentrant")),
    ("ds3_gather_for_generation", unneeded("DeepSpeed, which would divide the weights, is not used")),
    ("remove_unused_columns", unneeded("columns beside the prompt go to reward functions")),
    ("dataloader_num_workers", unneeded("prompts are tokenised once, before training")),
    ("dataloader_drop_last", unneeded("a batch is always full")),
    (
        "ddp_find_unused_parameters",
        unneeded("gradients are summed in one exchange, whichever parameters have one"),
    ),
    ("torch_empty_cache_steps", unneeded("nothing is padded, so the cache does not fragment")),
    ("use_liger_kernel", unneeded("logits are never stored")),
    ("log_level", unneeded("logging follows Python's own settings")),
    # without effect in TRL's PPO too
    ("max_steps", inert("total_episodes says how long a run is")),
    ("data_seed", inert("seed orders the prompts")),
    (
        "load_best_model_at_end",
        inert("metric_for_best_model keeps the best checkpoint, which is not loaded", set_back=True),
    ),
    ("greater_is_better", inert("metric_for_best_model is not set", set_back=True)),
    ("save_only_model", inert("a checkpoint holds what a run needs to go on")),
    ("enable_jit_checkpoint", inert("a signal to stop saves the run anyway")),
    ("full_determinism", inert("a seed and the number of processes give the same run on the same device")),
    ("tf32", inert("a CPU has no such format", set_back=True)),
    ("hub_strategy", inert("nothing is uploaded before push_to_hub()")),
    ("hub_always_push", inert("push_to_hub() uploads")),
    ("eval_on_start", inert("call evaluate() before train()")),
    ("optim_args", inert("AdamW has its own fields")),
    ("torch_compile torch_compile_backend torch_compile_mode", _OWN_KERNELS),
    ("liger_kernel_config", inert("logits are never stored")),
    ("neftune_noise_alpha", inert("rollout and update see the same network")),
    ("label_smoothing_factor label_names", inert("the loss is PPO's")),
    ("ddp_backend", inert("Gloo connects CPUs, NCCL GPUs", set_back=True)),
    ("local_rank", inert("the launcher numbers the processes")),
    ("accelerator_config", inert("the batches are the engine's own")),
    ("use_cache", inert("rollouts always cache keys and values")),
    ("ignore_data_skip", inert("a run that is resumed goes on with the next prompts")),
    ("bf16_full_eval fp16_full_eval prediction_loss_only eval_do_concat_batches eval_use_gather_object", _SAMPLES),
    ("eval_accumulation_steps include_for_metrics batch_eval_metrics", _SAMPLES),
    ("dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context", _PROMPTS),
    ("dataloader_in_order dataloader_pin_memory train_sampling_strategy length_column_name group_by_length", _PROMPTS),
    ("ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph average_tokens_across_devices", _ONE_EXCHANGE),
    ("log_on_each_node logging_nan_inf_filter include_tokens_per_second log_level_replica", inert(_OWN_LOOP)),
    ("skip_memory_metrics save_on_each_node restore_callback_states_from_checkpoint", inert(_OWN_LOOP)),
    ("include_num_input_tokens_seen", inert(_OWN_LOOP, parsed=(False, "no"))),
    ("debug", inert(_OWN_LOOP, parsed=(None, ""))),
    # served by something else
    ("fp16", elsewhere("bf16")),
    ("dtype", elsewhere("bf16, or models loaded in it")),
    ("max_rollout_batch", elsewhere("local_rollout_forward_batch_size")),
    ("dataset_name dataset_format", elsewhere("train_dataset of PPOTrainer")),
    ("chat_template_path", elsewhere("processing_class.chat_template")),
    ("reward_funcs", elsewhere("reward_model of PPOTrainer, a function if you like")),
    ("reward_weights", elsewhere("reward_model of PPOTrainer, a function that adds them up")),
    ("use_peft lora_r lora_alpha lora_target_modules lora_layers", elsewhere("peft_config of PPOTrainer")),
    ("profile shard_base", elsewhere("`rlhf-fast ppo`, which has it")),
])  # fmt: skip

STRATEGIES = {name: fact.by_epoch for name, fact in FACTS.items() if fact.by_epoch} | {"save_strategy": "save_steps"}
"""The fields that count a strategy's iterations; `save_strategy` is the engine's own, which has no `epoch`."""
SAME_OPTIMISER = ("adamw_torch", "adamw_torch_fused", "adamw_torch_xla", "adamw_apex_fused", "adamw_hf")
"""Values of `optim` that are implementations of AdamW, which is what is used."""


def fields_used(*uses: Use) -> list[str]:
    """The fields with one of these uses, in the order of the table."""
    return [name for name, fact in FACTS.items() if fact.use in uses]
