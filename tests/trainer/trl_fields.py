"""The fields of TRL 1.12's `PPOConfig`: its own, and those whose default differs from `TrainingArguments`."""

DEFAULTS = {
    "learning_rate": 3e-6, "dataset_num_proc": None, "num_mini_batches": 1, "total_episodes": None,
    "local_rollout_forward_batch_size": 64, "num_sample_generations": 10, "response_length": 53, "stop_token": None,
    "stop_token_id": None, "temperature": 0.7, "missing_eos_penalty": None, "sft_model_path": "EleutherAI/pythia-160m",
    "world_size": None, "num_total_batches": None, "micro_batch_size": None, "local_batch_size": None,
    "batch_size": None, "local_mini_batch_size": None, "mini_batch_size": None, "push_to_hub": False,
    "reward_model_path": "EleutherAI/pythia-160m", "model_adapter_name": None, "ref_adapter_name": None,
    "num_ppo_epochs": 4, "whiten_rewards": False, "kl_coef": 0.05, "kl_estimator": "k1", "cliprange": 0.2,
    "vf_coef": 0.1, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "ds3_gather_for_generation": True, "bf16": None,
    "lr_scheduler_kwargs": None, "use_liger_kernel": False, "torch_empty_cache_steps": None,
}  # fmt: skip
OTHERWISE = ("logging_steps", "gradient_checkpointing")
"""Fields with another default here; docs/migration.md says why."""
OWN_FIELDS = (*DEFAULTS, *OTHERWISE)
ARGUMENTS = (
    "args", "processing_class", "model", "ref_model", "reward_model", "train_dataset", "value_model", "data_collator",
    "eval_dataset", "optimizers", "callbacks", "peft_config",
)  # fmt: skip
