"""What serves a wish that has another name here, or is not served: verbs, fields and values that people know from other
libraries, and what to say of each."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Hint:
    """fields: names that serve it, of which a config may have some; note: what is said beside them; otherwise: what is
    said where a config has none of them."""

    fields: tuple[str, ...] = ()
    note: str = ""
    otherwise: str = ""

    def sentence(self, known: Collection[str]) -> str:
        """What to do, without a full stop, for a config that has the fields `known`."""
        here = [name for name in self.fields if name in known]
        if here:
            return f"use {' or '.join(here)}" + (f" ({self.note})" if self.note else "")
        return self.otherwise or f"{self.fields[0]}, which serves it, is a field of another verb"


def use(*fields: str, note: str = "", otherwise: str = "") -> Hint:
    return Hint(fields, note, otherwise)


def no(text: str) -> Hint:
    """Nothing serves it, or nothing has to."""
    return Hint(otherwise=text)


def table(rows: list[tuple[str, T]]) -> dict[str, T]:
    """Each of the names, which stand in a text side by side, with what belongs to all of them.

    Raises `ValueError` for a name that stands in two rows.
    """
    found: dict[str, T] = {}
    for names, value in rows:
        for name in names.split():
            if name in found:
                raise ValueError(f"{name!r} stands in two rows; expected one row for each name")
            found[name] = value
    return found


_PREFERENCES = "not served: preferences train a reward model (rlhf-fast reward), and PPO learns from it (rlhf-fast ppo)"
_GROUPS = (
    "not served: what is served is PPO (rlhf-fast ppo), whose critic stands for the mean of a group; "
    "critic=policy_head and critic=reference_mlp cost little"
)
_STAGES = "the stages are sft, then reward, then ppo; demo runs all of them"
_NO_SERVER = "there is no server or chat: generate answers prompts, export writes a model for programs that serve one"
_EXPORT = "use export: it merges an adapter into its base, and writes GGUF for llama.cpp with --gguf"
_BEFORE_START = "sft, reward and ppo say rows, steps, what is trained and where before their first step"
_RESUME = "use --resume auto with the verb that was stopped"
_LABELS = (
    "use annotate; judgements from elsewhere are rows of a file: prompt, responses and ranks, or chosen and rejected"
)

VERBS: dict[str, str] = table([
    ("dpo kto orpo ipo simpo cpo rrhf slic", _PREFERENCES),
    ("grpo dr_grpo dapo gspo rloo remax reinforce reinforce_pp", _GROUPS),
    ("train finetune fit run rlhf pipeline pretrain lora qlora", _STAGES),
    ("chat serve server api deploy vllm web ui cli", _NO_SERVER),
    ("merge convert save gguf quantize quantise push upload publish", _EXPORT),
    ("eval evaluation compare judge test winrate", "use evaluate"),
    ("benchmark", "use bench"),
    ("rm reward_model rewards preference preferences bradley_terry", "use reward"),
    ("infer inference predict sample complete answer rollout prompt", "use generate"),
    ("dry_run check validate info env data", _BEFORE_START),
    ("estimate memory", "use plan"),
    ("label rank collect feedback", _LABELS),
    ("resume continue restart", _RESUME),
    ("instruct supervised supervised_finetuning instruction_tuning", "use sft"),
    ("example examples quickstart tutorial init start", "use demo, which makes all it needs"),
    ("profile profiling trace", "use ppo --profile true"),
    ("score", "not served by itself: evaluate scores two models' responses, ppo those that it trains on"),
    ("distill", "not served: write the teacher's answers to a file, and use sft"),
    ("help", "rlhf-fast --help lists the verbs, rlhf-fast VERB --help the fields of one"),
])  # fmt: skip

_QUANTISED = no("not served: adapters are trained on plain weights, in bfloat16 or float32 (dtype)")
_ONE_EACH = use(
    "num_responses",
    otherwise="not served: PPO samples one response to a prompt in a pass over the prompts, and has a critic in place "
    "of a group's mean; more passes: total_episodes",
)
_NO_GROUPS = no(_GROUPS)
_MODEL = use("model_name_or_path", "model_path", "sft_model_path")
_DATA = use("dataset_name")
_BATCH = use("per_device_train_batch_size", note="times gradient_accumulation_steps makes the batch")
_RATE, _EPOCHS = use("learning_rate"), use("num_train_epochs", "total_episodes")
_WARMUP = use("warmup_steps", note="below 1: their share of all")
_RESPONSE = use("response_length", "max_length")
_DTYPE = use("dtype", note="auto, bfloat16 or float32")
_ALWAYS_ADAMW = no("remove it: AdamW is always used")
_NO_DROPOUT = no("not served: rollout and update have to see the same network")
_LOGS = no("remove it: metrics.jsonl in output_dir holds every step, and report.html its curves")
_EVALS = use("eval_dataset_name", note="held-out rows, which every run measures")
_NO_COMPILE = no("remove it: the kernels here are compiled already")
_NO_HUB = no("not served by the command line: upload output_dir, or the folder that export writes")
_SHARDS = use("shard_base", note="divides the frozen base among processes that torchrun starts", otherwise="not served")
_PROCESSES = no("remove it: torchrun --nproc-per-node N -m rlhf_fast VERB ... starts several processes")
_LOADER = no("remove it: rows are tokenised once, before the first step, and packed without padding")
_REWARD = use("reward_model_path", "reward_model_paths", "reward_funcs")
_RESUME_FIELD = use("resume", note="auto, or the path of a checkpoint")
_CHECKPOINTS = no("remove it: process 0 writes all that a run needs to go on, also where a signal stops it")
_ENGINE = no("not served: responses are sampled in the training process, with the training weights")
_CRITIC = use("critic", note="adapter, policy_head or reference_mlp")

FIELDS: dict[str, Hint] = table([
    # models and data
    ("model model_name model_id base_model pretrained_model_name_or_path", _MODEL),
    ("policy policy_path actor sft_model actor_model path", _MODEL),
    (
        "tokenizer tokenizer_name tokenizer_path tokenizer_name_or_path",
        no("remove it: the tokenizer is the one in the model's folder"),
    ),
    ("data dataset train_file train_data data_path train_dataset dataset_path", _DATA),
    ("prompt_data file input_file prompts_file", _DATA),
    ("eval_file eval_data eval_dataset validation_file val_data test_file", use("eval_dataset_name", "dataset_name")),
    ("val_fraction test_size validation_split eval_ratio val_size", use("eval_fraction", "eval_dataset_name")),
    ("format data_format template_format", use("dataset_format")),
    ("chat_template template prompt_template", use("chat_template_path", note="a Jinja file")),
    ("output out out_dir save_dir save_path output_path", use("output_dir", "output_file")),
    ("prompt question text", use("prompts", "dataset_name")),
    ("reward_model rm rm_path reward reward_path reward_model_name_or_path", _REWARD),
    ("reward_func reward_fn reward_function", use("reward_funcs")),
    (
        "ref_model ref_model_path reference_model ref",
        no("remove it: the reference is the SFT model that the policy starts from"),
    ),
    ("value_model critic_model critic_path value_model_path", _CRITIC),
    ("baseline base reference", use("baseline_path", "model_name_or_path", "sft_model_path")),
    (
        "max_samples max_rows limit num_prompts n_prompts max_train_samples",
        use("max_prompts", otherwise="give a file with fewer rows"),
    ),
    ("max_seq_length max_seq_len seq_length context_length cutoff_len block_size", use("max_length")),
    ("max_prompt_length max_query_length prompt_length", use("max_length", note="of prompt and response together")),
    ("packing pad_to_multiple_of padding padding_free group_by_length padding_side", _LOADER),
    (
        "completion_only_loss assistant_only_loss train_on_inputs mask_prompt",
        no("remove it: the loss is on responses only"),
    ),
    ("trust_remote_code", no("not served: code that comes with a model is never run")),
    ("shuffle", no("remove it: rows are shuffled in every pass, by seed")),
    # length of the run, and its steps
    ("batch_size bs train_batch_size global_batch_size micro_batch_size local_batch_size", _BATCH),
    (
        "rollout_batch_size mini_batch_size local_mini_batch_size num_total_batches local_rollout_forward_batch_size",
        use("num_mini_batches", "per_device_train_batch_size", "max_rollout_batch"),
    ),
    ("grad_accum gradient_accumulation accumulation_steps", use("gradient_accumulation_steps")),
    ("lr learn_rate step_size max_lr actor_learning_rate critic_learning_rate", _RATE),
    ("epochs num_epochs n_epochs epoch passes max_epochs", _EPOCHS),
    ("max_steps steps num_steps iterations num_iterations train_steps", _EPOCHS),
    ("episodes num_episodes max_episodes", _EPOCHS),
    ("warmup warmup_ratio warm_up num_warmup_steps", _WARMUP),
    ("scheduler lr_scheduler schedule", use("lr_scheduler_type")),
    ("clip_grad grad_clip max_norm gradient_clipping", use("max_grad_norm")),
    ("optim optimizer optim_args optim_target_modules", _ALWAYS_ADAMW),
    ("wd decay", use("weight_decay")),
    ("betas adam_betas", use("adam_beta1", "adam_beta2")),
    ("ppo_epochs", use("num_ppo_epochs")),
    ("data_seed", use("seed")),
    ("random_seed", use("seed")),
    ("full_determinism", use("seed", note="a run with the same seed gives the same numbers")),
    ("label_smoothing_factor", no("not served: the loss is the plain mean of the log-probs")),
    ("neftune_noise_alpha", no("not served: embeddings get no noise")),
    ("nll_loss_weight", no("not served: the reward model's loss is that of the ranks alone")),
    # LoRA and precision
    ("lora_rank rank r lora_dim", use("lora_r")),
    ("alpha lora_scale lora_scaling", use("lora_alpha")),
    ("target_modules lora_target lora_modules", use("lora_target_modules")),
    ("layers_to_transform num_layers lora_num_layers", use("lora_layers")),
    ("lora_dropout dropout attention_dropout", _NO_DROPOUT),
    (
        "lora peft use_lora full_finetuning full finetuning_type",
        use("use_peft", note="true: an adapter, false: all weights"),
    ),
    (
        "use_dora use_rslora lora_bias modules_to_save init_lora_weights",
        no("not served: plain LoRA is, by lora_r, lora_alpha, lora_target_modules and lora_layers"),
    ),
    ("load_in_4bit load_in_8bit quantization quantization_config bnb_config qlora", _QUANTISED),
    ("bnb_4bit_quant_type bnb_4bit_compute_dtype use_4bit use_8bit", _QUANTISED),
    ("bf16 bf16_full_eval", use("dtype", note="dtype=bfloat16")),
    ("fp16 fp16_full_eval torch_dtype model_dtype precision mixed_precision half tf32", _DTYPE),
    (
        "flash_attention use_flash_attention_2 attn_implementation use_liger_kernel use_unsloth",
        no("remove it: attention is packed, and logits are never stored, in every run"),
    ),
    ("torch_compile torch_compile_backend torch_compile_mode compile", _NO_COMPILE),
    ("liger_kernel_config", no("remove it: logits are never stored, in every run")),
    ("use_gradient_checkpointing", use("gradient_checkpointing")),
    ("use_cache", no("remove it: rollouts always cache keys and values")),
    ("torch_empty_cache_steps", no("remove it: nothing is padded, so the cache does not fragment")),
    (
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs",
        no("remove it: recomputation is non-reentrant"),
    ),
    # rollouts and PPO
    ("max_new_tokens max_tokens max_completion_length generate_max_len max_response_length", _RESPONSE),
    ("num_generations num_samples n_samples_per_prompt group_size rloo_k n", _ONE_EACH),
    ("num_return_sequences samples", _ONE_EACH),
    (
        "beta kl kl_beta kl_penalty init_kl_coef init_kl_coeff kl_coeff kl_loss_coef",
        use("kl_coef", otherwise="not served: it weighs a KL penalty, which PPO has (kl_coef of rlhf-fast ppo)"),
    ),
    ("target kl_target_value adap_kl_ctrl", use("kl_target")),
    ("horizon", use("kl_horizon")),
    ("clip_range epsilon eps_clip clip_eps clip clip_ratio", use("cliprange")),
    ("clip_range_value value_clip cliprange_v", use("cliprange_value")),
    ("value_coef vf_coeff critic_coef value_loss_coef", use("vf_coef")),
    ("ent_coef entropy_coeff entropy_beta", use("entropy_coef")),
    ("lambda lambd gae_lambda lam_gae", use("lam")),
    ("discount gamma_discount", use("gamma")),
    ("advantage_estimator advantage adv_estimator algorithm algo", _NO_GROUPS),
    ("scale_rewards num_generations_eval loss_type epsilon_high mask_truncated_completions", _NO_GROUPS),
    ("use_critic critic_free no_critic", _CRITIC),
    ("use_vllm vllm_mode vllm_gpu_memory_utilization vllm_server_host engine", _ENGINE),
    ("stop_sequences stop_strings stop_words", use("stop")),
    ("eos_token_id eos_token", use("stop_token_id", "stop_token", "stop")),
    ("non_eos_penalty eos_penalty truncation_penalty", use("missing_eos_penalty")),
    ("temp sampling_temperature", use("temperature")),
    (
        "top_k top_p min_p repetition_penalty do_sample",
        use("top_p", "temperature", note="in training, responses are sampled from the policy itself"),
    ),
    ("normalize_rewards reward_normalization normalize_reward reward_scaling", use("normalise", "whiten_rewards")),
    ("normalize", use("normalise")),
    ("whiten", use("whiten_rewards")),
    ("reward_clip", no("not served: rewards are taken as given")),
    ("center_rewards", use("center_rewards_coefficient")),
    # saving, logging, evaluation, processes
    ("resume_from_checkpoint resume_from checkpoint load_checkpoint", _RESUME_FIELD),
    ("load_best_model_at_end save_best", use("metric_for_best_model", note="keeps the best checkpoint")),
    ("save_every save_interval checkpointing_steps", use("save_steps")),
    ("save_on_each_node enable_jit_checkpoint ignore_data_skip restore_callback_states_from_checkpoint", _CHECKPOINTS),
    ("save_only_model", use("save_strategy", note="no: only the results are saved")),
    ("logging_steps logging_strategy logging_first_step log_interval logging_dir log_every", _LOGS),
    ("report_to run_name project wandb use_wandb wandb_project tensorboard", _LOGS),
    ("log_level verbose include_num_input_tokens_seen logging_nan_inf_filter", _LOGS),
    ("log_on_each_node log_level_replica skip_memory_metrics debug include_tokens_per_second", _LOGS),
    ("trackio_space_id trackio_bucket_id trackio_static_space_id num_sample_generations", _LOGS),
    ("eval_strategy evaluation_strategy eval_steps eval_on_start eval_delay do_eval eval_every", _EVALS),
    ("prediction_loss_only eval_accumulation_steps eval_do_concat_batches eval_use_gather_object", _EVALS),
    ("include_for_metrics batch_eval_metrics", _EVALS),
    ("do_train do_predict", no("remove it: a verb does what it is named after")),
    ("per_device_eval_batch_size", use("max_tokens_per_micro_batch")),
    ("push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision", _NO_HUB),
    ("fsdp fsdp_config deepspeed zero_stage tensor_parallel_size parallelism_config", _SHARDS),
    ("ds3_gather_for_generation", no("remove it: DeepSpeed is not used")),
    ("num_gpus gpus n_gpu num_processes nproc_per_node local_rank world_size accelerator_config", _PROCESSES),
    ("ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph", _PROCESSES),
    ("average_tokens_across_devices", no("remove it: means are over the whole batch, whichever process holds a row")),
    ("no_cuda cpu device device_map", use("use_cpu", note="true: the CPU even where there is a GPU")),
    ("dataloader_num_workers dataloader_drop_last dataloader_pin_memory remove_unused_columns", _LOADER),
    ("dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context", _LOADER),
    ("dataloader_in_order train_sampling_strategy length_column_name label_names", _LOADER),
    ("preprocessing_num_workers dataset_num_proc num_proc streaming", _LOADER),
    ("quiet silent no_progress", use("disable_tqdm")),
    ("skip_bad_rows skip_errors ignore_errors", use("on_bad_row", note="skip")),
    ("quantize quant outtype merge", use("gguf", "dtype")),
    ("adapter adapter_path lora_path peft_model model_adapter_name ref_adapter_name", _MODEL),
])  # fmt: skip

VALUES: dict[tuple[str, str], str] = {
    ("critic", "none"): "PPO has a critic; policy_head and reference_mlp run no forward of their own",
    ("critic", "None"): "PPO has a critic; policy_head and reference_mlp run no forward of their own",
    ("critic", "reward"): "adapter starts from the reward adapter where there is one",
    ("critic", "reward_model"): "adapter starts from the reward adapter where there is one",
    ("dtype", "float16"): "bfloat16 takes as much memory, and needs no loss scale",
    ("dtype", "fp16"): "bfloat16 takes as much memory, and needs no loss scale",
    ("dtype", "bf16"): "it is written bfloat16",
    ("dtype", "fp32"): "it is written float32",
    ("dtype", "int8"): _QUANTISED.otherwise,
    ("dtype", "int4"): _QUANTISED.otherwise,
    ("preset", "grpo"): _GROUPS,
    ("preset", "rloo"): _GROUPS,
    ("loss_mean", "sequence"): "means are over tokens, or over the parts of a batch",
    ("gguf", "q4_k_m"): "q8_0 is the smallest here; llama.cpp's llama-quantize makes smaller ones of it",
    ("gguf", "q4_0"): "q8_0 is the smallest here; llama.cpp's llama-quantize makes smaller ones of it",
    ("save_strategy", "epoch"): "save_steps below 1 is a share of all steps",
    ("lr_scheduler_type", "reduce_lr_on_plateau"): "it follows evaluations, of which there are none between steps",
    ("lr_scheduler_type", "greedy"): "it follows evaluations, of which there are none between steps",
}


def verb_hint(name: str, verbs: Collection[str]) -> str:
    """What to say of a verb that is none of `verbs`; nothing where nothing is known of it."""
    known = VERBS.get(name.lower().replace("-", "_"))
    if known:
        return known
    close = difflib.get_close_matches(name.lower(), verbs, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else ""


def field_hint(name: str, known: Collection[str]) -> str:
    """What to say of a field that is none of `known`, the fields of a config; nothing where nothing is known of it."""
    plain = name.lower().replace("-", "_")
    if plain in FIELDS:
        return FIELDS[plain].sentence(known)
    close = difflib.get_close_matches(plain, known, n=3) or [one for one in known if one.startswith(f"{plain}_")][:3]
    return f"did you mean {' or '.join(close)}?" if close else ""


def value_hint(field: str, value: object) -> str:
    """What to say of a value that `field` does not take; nothing where nothing is known of it."""
    return VALUES.get((field, str(value)), "")
