"""TRL's side of the parity check, in TRL's environment: `python -m benchmarks.parity_trl_theirs FOLDER MODE`.

Its trainer runs as released, for one update. From outside, its rollout is replaced by the recorded one, its order of
sequences in a PPO epoch by ours, and the variables of its training loop are read where it whitens the advantages.
Everything goes to FOLDER/MODE.safetensors.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

COLUMNS = ("logprobs", "ref_logprobs", "kl", "values", "rewards", "returns", "advantages")
BESIDE = ("scores", "padding_mask", "padding_mask_p1", "queries", "responses")


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    job = json.loads((folder / "job.json").read_text())
    job["options"] |= job["modes"][mode]
    recorded = {tuple(prompt): response for prompt, response in zip(job["prompts"], job["responses"], strict=True)}
    replace_rollout(recorded, job)
    shuffle = torch.Generator().manual_seed(job["options"]["seed"])
    ppo_trainer.np.random.permutation = lambda n: torch.randperm(n, generator=shuffle).numpy()
    seen = watch_whitening()
    trainer = build(folder, mode, job)
    trainer.train()
    tensors = {f"column/{name}": seen[name].detach().clone().contiguous() for name in (*COLUMNS, *BESIDE)}
    tensors |= {f"weight/{name}": value for name, value in trained(trainer, mode).items()}
    save_file(tensors, folder / f"{mode}.safetensors")


def build(folder: Path, mode: str, job: dict[str, Any]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
    if mode.startswith("lora"):
        policy, reference = PeftModel.from_pretrained(policy, folder / "adapter", is_trainable=True), None
    classifiers = {
        role: AutoModelForSequenceClassification.from_pretrained(folder / role, dtype=torch.float32)
        for role in ("reward", "value")
    }
    args = PPOConfig(
        output_dir=tempfile.mkdtemp(), use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
        save_strategy="no", num_sample_generations=0, gradient_checkpointing=False, **job["options"],
    )  # fmt: skip
    rows = [{"input_ids": prompt} for prompt in job["prompts"]]
    return PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=reference, reward_model=classifiers["reward"],
        value_model=classifiers["value"], train_dataset=rows, eval_dataset=rows,
    )  # fmt: skip


def replace_rollout(recorded: dict[tuple[int, ...], list[int]], job: dict[str, Any]) -> None:
    """Give each query its recorded response, padded as generation pads it, and the logits that the policy has there."""

    def batch_generation(model: Any, queries: Tensor, _: int, pad: int, config: Any) -> tuple[Tensor, Tensor]:
        given = [recorded[tuple(token for token in row if token != pad)] for row in queries.tolist()]
        padded = [response + [pad] * (job["options"]["response_length"] - len(response)) for response in given]
        sequences = torch.cat([queries, torch.tensor(padded)], 1)
        logits = ppo_trainer.forward(model, sequences, pad).logits[:, queries.shape[1] - 1 : -1]
        return sequences, logits / config.temperature

    ppo_trainer.batch_generation = torch.no_grad()(batch_generation)


def watch_whitening() -> dict[str, Tensor]:
    """What the training loop held when it whitened the advantages, and what that gave; filled while it runs."""
    seen: dict[str, Tensor] = {}
    whiten = ppo_trainer.masked_whiten

    def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        whitened = whiten(values, mask, shift_mean)
        if shift_mean:
            loop = sys._getframe(1).f_locals
            seen.update({name: loop[name].clone() for name in (*COLUMNS, *BESIDE)})
            seen["advantages"] = whitened.masked_fill(~mask, 0)
        return whitened

    ppo_trainer.masked_whiten = masked_whiten
    return seen


def trained(trainer: Any, mode: str) -> dict[str, Tensor]:
    """The weights that the update changed, under plain names."""
    policy = trainer.model.policy.named_parameters()
    if mode.startswith("lora"):
        policy = (
            (name.removeprefix("base_model.model.").replace(".default", ""), parameter)
            for name, parameter in policy
            if ".lora_" in name
        )
    out = {f"policy/{name}": parameter.detach().clone() for name, parameter in policy}
    return out | {f"value/{name}": p.detach().clone() for name, p in trainer.model.value_model.named_parameters()}


if __name__ == "__main__":
    main()
