"""Another value for every field of every config, and what has to stand beside it to be seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Change:
    to: Any
    beside: dict[str, Any] = field(default_factory=dict)


ELSEWHERE = {
    "output_dir", "output_file", "use_cpu", "disable_tqdm", "on_bad_row", "resume", "ddp_timeout", "shard_base",
    "reward_timeout", "reward_retries",
}  # fmt: skip
"""Where the results go is seen in every test that reads them; the others have tests of their own in test_fields.py,
`resume` in tests/resume, `ddp_timeout` and `shard_base` in tests/distributed, and what is done about rewards that fail
in tests/rewards/test_retrying.py."""

ONE_ROW = 4e-6
"""GB that fit one sequence of these small models, and not two."""

_TRAINING = {
    "per_device_train_batch_size": Change(2), "gradient_accumulation_steps": Change(2),
    "learning_rate": Change(2e-2), "lr_scheduler_type": Change("constant"),
    "lr_scheduler_kwargs": Change({"num_cycles": 1.5}), "warmup_steps": Change(1), "weight_decay": Change(0.5),
    "adam_beta1": Change(0.5), "adam_beta2": Change(0.5), "adam_epsilon": Change(1e-2), "max_grad_norm": Change(1e-3),
    "gradient_checkpointing": Change(True), "activation_checkpointing": Change(True), "seed": Change(7),
    "dtype": Change("bfloat16"), "use_peft": Change(False, {"lora_r": 16, "lora_alpha": 32.0}), "lora_r": Change(3),
    "lora_alpha": Change(8.0), "lora_target_modules": Change(["q_proj"]), "lora_layers": Change([1]),
    "max_length": Change(6), "max_tokens_per_micro_batch": Change(15), "auto_find_batch_size": Change(True),
    "dataset_format": Change("oasst"), "chat_template_path": Change("template.jinja"),
    "save_strategy": Change("no"), "save_steps": Change(1), "save_total_limit": Change(1, {"save_steps": 1}),
    "metric_for_best_model": Change("lr", {"save_steps": 1, "save_total_limit": 1}),
    "greater_is_better": Change(
        True, {"save_steps": 1, "save_total_limit": 1, "metric_for_best_model": "lr", "greater_is_better": False}
    ),
}  # fmt: skip

SFT = _TRAINING | {
    "num_train_epochs": Change(2.0), "model_name_or_path": Change("other"), "dataset_name": Change("more.jsonl"),
    "eval_dataset_name": Change("more.jsonl"),
}  # fmt: skip

REWARD = _TRAINING | {
    "num_train_epochs": Change(2.0), "model_name_or_path": Change("other"), "dataset_name": Change("more_ranked.jsonl"),
    "center_rewards_coefficient": Change(1.0), "eval_dataset_name": Change("more_ranked.jsonl"),
    "eval_fraction": Change(0.5), "normalise": Change(False), "normalise_samples": Change(5),
    "response_length": Change(2), "temperature": Change(2.0),
}  # fmt: skip

PPO = _TRAINING | {
    "num_train_epochs": Change(2.0, {"total_episodes": None, "num_train_epochs": 1.0}),
    "sft_model_path": Change("other"),
    "reward_funcs": Change(["endpoint:http://127.0.0.1:9"], {"reward_retries": 0}),
    "reward_weights": Change([2.0]), "reward_special_tokens": Change(True, {"stop_token": "none"}),
    "reward_model_path": Change("reward"), "dataset_name": Change("more.jsonl"), "preset": Change("trl"),
    "critic": Change("reference_mlp"), "profile": Change(True), "memory_profile": Change(True), "auto": Change(True),
    "log_rollouts": Change(False),
    "total_episodes": Change(4), "response_length": Change(3), "stop_token": Change("none"),
    "stop_token_id": Change(11), "stop": Change(["1"]), "max_kv_cache_gb": Change(ONE_ROW),
    "temperature": Change(0.5), "max_rollout_batch": Change(2),
    "num_ppo_epochs": Change(1), "num_mini_batches": Change(2), "kl_coef": Change(0.5),
    "kl_estimator": Change("k3", {"preset": "trl"}),
    "kl_target": Change(1.0), "kl_horizon": Change(20, {"kl_target": 1.0}),
    "target_kl": Change(1e-9, {"num_ppo_epochs": 3}),
    "cliprange": Change(1e-3), "cliprange_value": Change(0.5), "vf_coef": Change(1.0), "entropy_coef": Change(0.1),
    "dual_clip": Change(1.0001, {"cliprange": 0.01}), "log_ratio_clamp": Change(1e-3), "gamma": Change(0.5),
    "lam": Change(0.5), "whiten_rewards": Change(True), "whiten_ddof": Change(0), "score_at": Change("eos+1"),
    "missing_eos_penalty": Change(1.0), "bootstrap_truncated": Change(True),
    "loss_mean": Change("micro", {"gradient_accumulation_steps": 2}),
    "old_logprobs": Change("sampled"),
}  # fmt: skip

_SAMPLING = {
    "dataset_name": Change("more.jsonl"), "dataset_format": Change("oasst"), "max_prompts": Change(3),
    "chat_template_path": Change("template.jinja"), "response_length": Change(2), "temperature": Change(0.0),
    "seed": Change(5), "stop": Change(["1"]), "max_rollout_batch": Change(2),
    "max_kv_cache_gb": Change(ONE_ROW), "max_tokens_per_micro_batch": Change(15),
    "dtype": Change("bfloat16"), "model_path": Change("other"),
}  # fmt: skip

EVALUATE = _SAMPLING | {
    "baseline_path": Change("base"), "reward_model_paths": Change(["reward2"]),
    "model_path": Change("reward", {"baseline_path": "base"}),
    "reward_funcs": Change(["tests.test_fields:even"]),
    "reward_special_tokens": Change(True, {"reward_funcs": ["tests.test_fields:even"], "response_length": 30}),
}  # fmt: skip

GENERATE = _SAMPLING | {
    "prompts": Change(["w1 w2"], {"dataset_name": None, "prompts": ["w3"]}), "top_k": Change(1), "top_p": Change(0.1),
    "num_responses": Change(2),
    "dtype": Change("bfloat16", {"dtype": "float32", "response_length": 40, "num_responses": 8}),
}  # fmt: skip
