"""The same update on the same rollout in TRL 1.12 and here, number by number.

    python -m benchmarks.parity_trl                            # makes .venv-trl the first time; prints the table

Both sides get the same tiny random models in float32 (policy, another reference, reward, value model, and a LoRA
adapter that is not zero), the same config, and a recorded rollout with responses that end early, at the budget, and not
at all. TRL runs in a process of its own; `rlhf_fast.trainer.PPOTrainer` runs here, on `PPOTrainer.update`.

Compared are the columns over response slots and all trained weights after the update. `max_grad_norm` is 0 here, since
TRL's PPO does not clip gradients.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks import environments
from benchmarks.vs_trl.sides import PACKAGES, TRL
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.trainer import PPOConfig, PPOTrainer

COLUMNS = ("logprobs", "ref_logprobs", "kl", "values", "rewards", "returns", "advantages")
ACTION_COLUMNS = ("logprobs", "ref_logprobs", "advantages")  # compared at response tokens; the others at every slot
VOCABULARY, EOS, PAD = 61, 1, 60
BATCH, BUDGET = 8, 6
OPTIONS: dict[str, Any] = {
    "per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "total_episodes": BATCH,
    "response_length": BUDGET, "stop_token": "eos", "temperature": 0.7, "learning_rate": 1e-3, "num_ppo_epochs": 3,
    "lr_scheduler_type": "constant", "missing_eos_penalty": 1.0, "kl_coef": 0.1, "gamma": 0.98, "seed": 3,
}  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {},
    "lora, 2 micro-batches": {
        "per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2, "kl_estimator": "k3",
        "whiten_rewards": True,
    },
}  # fmt: skip
"""What is trained of the policy, and the options of its own."""


@dataclass(frozen=True)
class Difference:
    """Of one quantity: the largest absolute difference, and the largest absolute value (weights: largest change)."""

    mode: str
    quantity: str
    largest: float
    scale: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/parity_trl"), help="Models and TRL's numbers.")
    given = parser.parse_args()
    python = environments.make(TRL, PACKAGES)
    make_case(given.output_dir)
    table = Table("quantity", "mode", "largest difference", "largest value")
    for mode in MODES:
        for row in compare(given.output_dir, mode, python):
            table.add_row(row.quantity, row.mode, f"{row.largest:.1e}", f"{row.scale:.3g}")
    Console(width=100).print(table)


def make_case(folder: Path) -> None:
    """Save the models, the tokenizer and the recorded rollout."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, eos_token_id=EOS, pad_token_id=PAD, initializer_range=0.2,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    reference = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    for name, model in (("policy", policy), ("reference", reference)):
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    scalar = copy.deepcopy(config)
    scalar.num_labels = 1
    for name in ("reward", "value"):
        LlamaForSequenceClassification(scalar).save_pretrained(folder / name)
    adapted = get_peft_model(policy, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    (folder / "job.json").write_text(json.dumps(recorded_rollout() | {"options": OPTIONS, "modes": MODES}))


def recorded_rollout() -> dict[str, list[list[int]]]:
    """Twice as many prompts as a batch takes: a trainer's last batch may step otherwise."""
    draw = random.Random(0)
    words = range(2, PAD)
    prompts = [draw.choices(words, k=draw.randint(2, 9)) for _ in range(2 * BATCH)]
    lengths = [i % (BUDGET + 1) for i in range(2 * BATCH)]  # 0: no EOS; 1: nothing but EOS; BUDGET: EOS is the last
    responses = [[*draw.choices(words, k=n - 1), EOS] if n else draw.choices(words, k=BUDGET) for n in lengths]
    return {"prompts": prompts, "responses": responses}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<unk>": 0, "<eos>": EOS} | {f"w{i}": i for i in range(2, PAD)} | {"<pad>": PAD}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>", padding_side="left"
    )


def compare(folder: Path, mode: str, python: Path) -> list[Difference]:
    """Run both sides on the case in `folder`. Raises `RuntimeError` with the end of TRL's output if that fails."""
    environment = os.environ | {"PYTHONPATH": environments.PATH, "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-m", "benchmarks.parity_trl_theirs", str(folder), mode]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"TRL's side ended with {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    theirs = load_file(folder / f"{mode}.safetensors")
    columns = {name.removeprefix("column/"): v for name, v in theirs.items() if name.startswith("column/")}
    trainer = build(folder, mode)
    before = {name: value.clone() for name, value in weights(trainer)}
    rollout = record(columns, trainer)
    metrics = trainer.update(rollout)
    rows = [Difference(mode, name, *_column(name, columns, rollout)) for name in COLUMNS]
    mean = float(columns["scores"].mean())
    rows.append(Difference(mode, "mean score", abs(metrics["objective/scores"] - mean), abs(mean)))
    return rows + list(_weights(mode, theirs, before, dict(weights(trainer))))


def build(folder: Path, mode: str) -> PPOTrainer:
    """Our side: the same arguments."""
    job = json.loads((folder / "job.json").read_text())
    policy: Any = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    reference: PreTrainedModel | None = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
    if mode.startswith("lora"):
        policy, reference = PeftModel.from_pretrained(policy, str(folder / "adapter"), is_trainable=True), None
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / role, dtype=torch.float32)
        for role in ("reward", "value")
    )
    args = PPOConfig(
        output_dir=str(folder / f"ours-{mode}"), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        save_strategy="no", num_sample_generations=0, max_grad_norm=0.0, **(OPTIONS | MODES[mode]),
    )  # fmt: skip
    return PPOTrainer(
        args=args, processing_class=tokenizer(), model=policy, ref_model=reference, reward_model=reward,
        value_model=value, train_dataset=[{"input_ids": prompt} for prompt in job["prompts"]],
    )  # fmt: skip


def record(columns: dict[str, Tensor], trainer: PPOTrainer) -> Rollout:
    """The batch that TRL drew, in its order."""
    prompts = [[token for token in row if token != PAD] for row in columns["queries"].tolist()]
    responses = [[token for token in row if token != PAD] for row in columns["responses"].tolist()]
    return Rollout.from_responses(
        prompts, responses, finished=[EOS in r for r in responses], budget=BUDGET, score_at=trainer.args.score_at
    )


def weights(trainer: PPOTrainer) -> Iterator[tuple[str, Tensor]]:
    roles = trainer.roles
    for role, model in (("policy", roles.policy), ("value", roles.critic)):
        for name, parameter in model.named_parameters():
            yield f"{role}/{name}", parameter.detach()


def _column(name: str, columns: dict[str, Tensor], rollout: Rollout) -> tuple[float, float]:
    """Largest difference and largest value over the slots that the loss reads."""
    actions = name in ACTION_COLUMNS
    mask = ~columns["padding_mask" if actions else "padding_mask_p1"]
    theirs = columns[name][mask]
    ours = getattr(rollout, name)[rollout.action_mask] if actions else getattr(rollout, name)
    return float((ours - theirs).abs().max()), float(theirs.abs().max())


def _weights(
    mode: str, theirs: dict[str, Tensor], before: dict[str, Tensor], after: dict[str, Tensor]
) -> Iterator[Difference]:
    for role in ("policy", "value"):
        names = [name for name in after if name.startswith(f"{role}/")]
        differences = max(float((after[name] - theirs[f"weight/{name}"]).abs().max()) for name in names)
        changes = max(float((after[name] - before[name]).abs().max()) for name in names)
        yield Difference(mode, f"{role} weights after the update", differences, changes)


if __name__ == "__main__":
    main()
