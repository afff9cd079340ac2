"""Each field of TRL's `PPOConfig` with values other than its default, a row each: the config is made with it."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.drop_in.option_sets import SCRIPTS, OptionSet

SETTINGS: dict[str, tuple[Any, ...]] = {
    "output_dir": ("elsewhere",),
    "per_device_train_batch_size": (2,), "num_train_epochs": (1.0,), "max_steps": (1,), "learning_rate": (1e-4,),
    "lr_scheduler_type": (
        "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt", "cosine_with_restarts",
    ),
    "lr_scheduler_kwargs": ({},), "warmup_steps": (1, 0.5),
    "optim": ("adamw_torch", "adafactor", "sgd"), "optim_args": ("a=1",),
    "weight_decay": (0.01,), "adam_beta1": (0.8,), "adam_beta2": (0.95,), "adam_epsilon": (1e-5,),
    "optim_target_modules": ("q_proj",), "gradient_accumulation_steps": (2,),
    "average_tokens_across_devices": (False,), "max_grad_norm": (0.5,), "label_smoothing_factor": (0.1,),
    "bf16": (True, False), "fp16": (True,), "bf16_full_eval": (True,), "fp16_full_eval": (True,),
    "tf32": (True, False),
    "activation_checkpointing": (True,), "activation_checkpointing_kwargs": ({"use_reentrant": False},),
    "gradient_checkpointing": (False,), "gradient_checkpointing_kwargs": ({"use_reentrant": True},),
    "torch_compile": (True,), "torch_compile_backend": ("inductor",), "torch_compile_mode": ("default",),
    "use_liger_kernel": (True,), "liger_kernel_config": ({"rope": True},), "use_cache": (True,),
    "neftune_noise_alpha": (5.0,), "torch_empty_cache_steps": (1,), "auto_find_batch_size": (True,),
    "logging_strategy": ("epoch", "no"), "logging_steps": (1, 0.5), "logging_first_step": (True,),
    "log_on_each_node": (False,), "logging_nan_inf_filter": (False,), "include_num_input_tokens_seen": ("all", True),
    "log_level": ("info",), "log_level_replica": ("error",), "disable_tqdm": (True,), "report_to": ([],),
    "run_name": ("first",), "project": ("parcels",), "trackio_space_id": ("space",), "trackio_bucket_id": ("bucket",),
    "trackio_static_space_id": ("static",),
    "eval_strategy": ("steps", "epoch"), "eval_steps": (2, 0.5), "eval_delay": (1,),
    "per_device_eval_batch_size": (2,), "prediction_loss_only": (True,), "eval_on_start": (True,),
    "eval_do_concat_batches": (False,), "eval_use_gather_object": (True,), "eval_accumulation_steps": (1,),
    "include_for_metrics": (["loss"],), "batch_eval_metrics": (True,),
    "save_only_model": (True,), "save_strategy": ("no", "epoch", "best"), "save_steps": (1, 0.5),
    "save_on_each_node": (True,), "save_total_limit": (1,), "enable_jit_checkpoint": (True,),
    "push_to_hub": (True,), "hub_token": ("token",), "hub_private_repo": (True,), "hub_model_id": ("me/model",),
    "hub_strategy": ("end", "checkpoint", "all_checkpoints"), "hub_always_push": (True,), "hub_revision": ("second",),
    "load_best_model_at_end": (True,), "metric_for_best_model": ("objective/scores",), "greater_is_better": (True,),
    "ignore_data_skip": (True,), "restore_callback_states_from_checkpoint": (True,), "full_determinism": (True,),
    "seed": (7,), "data_seed": (3,), "use_cpu": (True,), "accelerator_config": ({"split_batches": True},),
    "parallelism_config": ({"dp_replicate_size": 1},),
    "dataloader_drop_last": (True,), "dataloader_num_workers": (1,), "dataloader_pin_memory": (False,),
    "dataloader_persistent_workers": (True,), "dataloader_prefetch_factor": (2,),
    "dataloader_multiprocessing_context": ("spawn",), "dataloader_in_order": (False,),
    "remove_unused_columns": (False,), "label_names": (["labels"],),
    "train_sampling_strategy": ("sequential", "group_by_length"), "length_column_name": ("len",),
    "ddp_find_unused_parameters": (True, False), "ddp_bucket_cap_mb": (10,), "ddp_broadcast_buffers": (True,),
    "ddp_static_graph": (True,), "ddp_backend": ("gloo",), "ddp_timeout": (60,),
    "fsdp": ("full_shard",), "fsdp_config": ({"min_num_params": 1},),
    "deepspeed": ({"zero_optimization": {"stage": 2}},),
    "debug": ("underflow_overflow",), "skip_memory_metrics": (False,),
    "do_train": (True,), "do_eval": (True,), "do_predict": (True,), "resume_from_checkpoint": ("checkpoint-1",),
    "local_rank": (0,), "dataset_num_proc": (2,),
    "num_mini_batches": (2, 4), "total_episodes": (4,), "local_rollout_forward_batch_size": (1,),
    "num_sample_generations": (1, 20), "response_length": (9,), "stop_token": ("eos",), "stop_token_id": (5,),
    "temperature": (1.0,), "missing_eos_penalty": (1.0,), "sft_model_path": ("policy",), "world_size": (2,),
    "num_total_batches": (3,), "micro_batch_size": (2,), "local_batch_size": (2,), "batch_size": (2,),
    "local_mini_batch_size": (2,), "mini_batch_size": (2,), "reward_model_path": ("reward",),
    "model_adapter_name": ("default",), "ref_adapter_name": ("default",), "num_ppo_epochs": (2,),
    "whiten_rewards": (True,), "kl_coef": (0.0, 0.2), "kl_estimator": ("k3",), "cliprange": (0.1,),
    "vf_coef": (0.5,), "cliprange_value": (0.1,), "gamma": (0.9,), "lam": (0.9, 1.0),
    "ds3_gather_for_generation": (False,),
}  # fmt: skip
BESIDE: dict[str, dict[str, Any]] = {
    "num_train_epochs": {"total_episodes": None}, "whiten_rewards": {"per_device_train_batch_size": 8},
    "load_best_model_at_end": {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1},
    "metric_for_best_model": {"eval_strategy": "steps", "eval_steps": 1},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_persistent_workers": {"dataloader_num_workers": 1},
    "torch_compile_mode": {"torch_compile_backend": "inductor"},
}  # fmt: skip
"""Options without which a field cannot be given."""


def field_rows() -> list[OptionSet]:
    return [
        OptionSet(f"{name}={value!r}", SCRIPTS / "setting.py", (json.dumps(BESIDE.get(name, {}) | {name: value}),))
        for name, values in SETTINGS.items()
        for value in values
    ]
