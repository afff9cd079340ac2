"""The rows of the table: a script and its options, and the change of import that makes TRL's script one of ours."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "scripts"
MOVED = {"PPOConfig": "rlhf_fast", "PPOTrainer": "rlhf_fast"} | dict.fromkeys(
    ("ModelConfig", "ScriptArguments", "get_peft_config", "get_quantization_config", "get_kbit_device_map"),
    "rlhf_fast.trainer",
)
"""What a script imports from TRL, and where it is here."""

EXAMPLE: dict[str, object] = {
    "dataset_name": "rows", "model_name_or_path": "policy", "sft_model_path": "policy", "reward_model_path": "reward",
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "total_episodes": 8, "response_length": 8,
    "num_ppo_epochs": 2, "learning_rate": 1e-3, "num_sample_generations": 1, "missing_eos_penalty": 1.0,
    "logging_steps": 1, "report_to": "none", "use_cpu": True,
}  # fmt: skip
"""Options of the example in every row, where a row says nothing else."""
EXAMPLE_ROWS = (
    "",
    "--use_peft",
    "--use_peft --lora_r 4 --lora_alpha 8 --lora_target_modules q_proj v_proj",
    "--use_peft --lora_target_modules all-linear --use_rslora",
    "--use_peft --lora_dropout 0.1 --dtype bfloat16",
    "--dtype bfloat16",
    "--dtype float32 --bf16 false",
    "--attn_implementation eager",
    "--stop_token eos",
    "--stop_token_id 5 --missing_eos_penalty 2.0",
    "--kl_estimator k3 --kl_coef 0.1",
    "--kl_coef 0",
    "--per_device_train_batch_size 8 --whiten_rewards",
    "--gamma 0.98 --lam 0.9 --cliprange 0.1 --cliprange_value 0.1 --vf_coef 0.5",
    "--gradient_accumulation_steps 2 --num_mini_batches 2",
    "--gradient_checkpointing false",
    '--gradient_checkpointing true --gradient_checkpointing_kwargs {"use_reentrant":false}',
    "--num_train_epochs 1",
    "--temperature 1.0 --response_length 20 --local_rollout_forward_batch_size 1",
    "--lr_scheduler_type cosine --warmup_steps 1 --weight_decay 0.01 --max_grad_norm 0.5",
    "--optim adamw_torch --adam_beta2 0.95 --adam_epsilon 1e-5",
    "--optim adafactor",
    "--save_steps 1 --save_total_limit 1",
    "--save_strategy no",
    "--logging_steps 2 --logging_first_step --disable_tqdm true",
    "--eval_strategy steps --eval_steps 1 --per_device_eval_batch_size 2",
    "--num_sample_generations 0 --seed 7 --data_seed 3",
    "--dataset_num_proc 2",
    "--max_steps 1 --dataloader_num_workers 1 --remove_unused_columns false",
    "--sft_model_path policy-neox --reward_model_path reward-neox --model_name_or_path policy-neox",
    "--sft_model_path policy-gpt2 --reward_model_path reward-gpt2 --model_name_or_path policy-gpt2",
    "--use_peft --sft_model_path policy-gpt2 --reward_model_path reward-gpt2 --model_name_or_path policy-gpt2",
)
ADAPTER_FORMS: tuple[tuple[str, dict[str, object]], ...] = (
    ("peft_config", {}),
    ("peft_config", {"target_modules": "all-linear", "lora_dropout": 0.1}),
    ("peft_config", {"use_rslora": True}),
    ("peft_config", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 4}}),
    ("peft_config", {"layers_to_transform": [1]}),
    ("peft_config", {"init_lora_weights": "gaussian"}),
    ("peft_config", {"use_dora": True}),
    ("peft_config", {"modules_to_save": ["lm_head"]}),
    ("peft_model", {}),
    ("peft_model", {"target_modules": "all-linear"}),
    ("merged", {}),
    ("merged", {"target_modules": "all-linear", "use_rslora": True}),
    ("loaded_adapter", {}),
    ("two_adapters", {}),
    ("two_runs", {}),
    ("adapted_reward", {}),
    ("adapted_value", {}),
    ("reference_beside", {}),
    ("other_method", {"method": "IA3Config"}),
    ("other_method", {"method": "PromptTuningConfig", "num_virtual_tokens": 4}),
)


@dataclass(frozen=True)
class OptionSet:
    """A script with its arguments; `script` None: pytest's."""

    title: str
    script: Path | None
    arguments: tuple[str, ...]


def own_rows() -> list[OptionSet]:
    """Scripts of our own. `OUTPUT` in the arguments is a folder of the row's."""
    rows = [OptionSet(f"example {given}".strip(), SCRIPTS / "example.py", _example(given)) for given in EXAMPLE_ROWS]
    users = SCRIPTS / "users.py"
    rows += [OptionSet(f"user: {form}", users, (form, "OUTPUT")) for form in forms_of(users)]
    for form, options in ADAPTER_FORMS:
        said = ", ".join(f"{name}={value!r}" for name, value in options.items())
        arguments = (form, "OUTPUT", json.dumps(options))
        rows.append(OptionSet(f"adapter: {form} {said}".strip(), SCRIPTS / "adapters.py", arguments))
    return rows


def trl_rows(folder: Path) -> list[OptionSet]:
    """TRL's own examples and the tests of its trainer, from a copy of its repository."""
    found = {path.stem: path for path in sorted(folder.glob("examples/scripts/**/ppo*.py"))}
    paths = {"sft_model_path": "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5",
             "reward_model_path": "trl-internal-testing/tiny-Qwen2ForSequenceClassification-2.5"}  # fmt: skip
    base = EXAMPLE | paths | {"model_name_or_path": paths["sft_model_path"]}
    sets = {
        "ppo": ("trl-internal-testing/descriptiveness-sentiment-trl-style", "--dataset_train_split descriptiveness"),
        "ppo_tldr": ("trl-lib/tldr", "--dataset_test_split validation --stop_token eos --eval_strategy steps "
                                     "--eval_steps 1"),
    }  # fmt: skip
    rows = []
    for name, path in found.items():
        data, more = sets[name]
        for given in ("", " --use_peft"):
            arguments = _example(more + given, base | {"dataset_name": data})
            rows.append(OptionSet(f"TRL's {path.name} {more}{given}", path, arguments))
    test = "tests/experimental/test_ppo_trainer.py"
    return rows + [
        OptionSet(f"TRL's {Path(test).name} {name}", None, ("-q", f"{test}::TestPPOTrainer::{name}"))
        for name in ("test_basic_training", "test_peft_training")
    ]


def forms_of(script: Path) -> list[str]:
    """The names in a script's `FORMS`, without running it."""
    for node in ast.parse(script.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FORMS":
            return [ast.unparse(form) for form in node.value.elts]  # type: ignore[attr-defined]
    raise ValueError(f"{script} has no FORMS")


def _example(given: str, base: dict[str, object] = EXAMPLE) -> tuple[str, ...]:
    """Arguments of the command line; an option of `given` takes the place of the one of `base`."""
    words = given.split()
    named = {word.removeprefix("--") for word in words if word.startswith("--")}
    if "num_train_epochs" in named:
        named.add("total_episodes")  # which would say the run's length alone
    kept = [word for name, value in base.items() if name not in named for word in (f"--{name}", str(value))]
    return ("--output_dir", "OUTPUT", *kept, *words)


def change_imports(text: str) -> str:
    """A script of TRL's with `PPOTrainer` and what stands beside it imported from here; nothing else is touched."""
    lines = text.splitlines()
    for node in reversed(ast.parse(text).body):
        if not isinstance(node, ast.ImportFrom) or node.module not in ("trl", "trl.experimental.ppo"):
            continue
        places: dict[str, list[str]] = {}
        for alias in node.names:
            places.setdefault(MOVED.get(alias.name, node.module), []).append(ast.unparse(alias))
        new = [f"from {place} import {', '.join(names)}" for place, names in places.items()]
        lines[node.lineno - 1 : node.end_lineno] = new
    return "\n".join(lines) + "\n"
