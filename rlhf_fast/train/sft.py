"""Supervised fine-tuning: cross-entropy on response tokens, sequences packed side by side without padding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import Encoded, encode_demonstration
from rlhf_fast.data.readers import read_demonstrations
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.load import load_shared, load_tokenizer
from rlhf_fast.model.lora_choice import lora_config
from rlhf_fast.model.packed import Packed, cut_by_tokens
from rlhf_fast.model.roles import Policy
from rlhf_fast.runtime.device import choose_device, choose_dtype, seed_everything
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.tracking import Tracker
from rlhf_fast.train.sft_config import SFTConfig


@dataclass
class SFT:
    """A run's state: the policy being trained and the tokenised demonstrations."""

    config: SFTConfig
    policy: Policy
    rows: list[Encoded]

    def __post_init__(self) -> None:
        c = self.config
        self.batch_size = c.per_device_train_batch_size * c.gradient_accumulation_steps
        self.steps = max(1, round(c.num_train_epochs * len(self.rows) / self.batch_size))
        self.optimiser = Optimiser.build(c, self.policy.named_parameters(), self.steps)

    def batch(self, step: int) -> list[Encoded]:
        """Passes over all rows, each in an order of its own."""
        rows = []
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(position, len(self.rows))
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            rows.append(self.rows[int(torch.randperm(len(self.rows), generator=generator)[index])])
        return rows

    def step(self, index: int) -> dict[str, float]:
        """One optimiser step: the mean negative log-prob over all response tokens of the batch."""
        rows = self.batch(index)
        tokens = sum(label != -100 for row in rows for label in row.labels[1:])
        loss = 0.0
        for group in cut_by_tokens([len(row.input_ids) for row in rows], self.config.max_tokens_per_micro_batch):
            packed = Packed.from_sequences(
                [rows[i].input_ids for i in group], [rows[i].labels for i in group], self.policy.model.device
            )
            part = -self.policy.logprobs(packed).logprobs.sum() / tokens
            part.backward()
            loss += float(part.detach())
        return {"loss": loss, "grad_norm": self.optimiser.step(), "lr": self.optimiser.learning_rate}


def run_sft(config: SFTConfig) -> Path:
    """Read, tokenise, train, save; returns the folder of the model (full) or adapter (LoRA)."""
    if not config.model_name_or_path or not config.dataset_name:
        raise UsageError("SFT needs model_name_or_path (the base model) and dataset_name (the demonstrations).")
    seed_everything(config.seed)
    tokenizer = load_tokenizer(config.model_name_or_path, config.chat_template_path)
    rows = _encode(config, tokenizer)
    device = choose_device(config.use_cpu)
    full = not config.use_peft
    dtype = choose_dtype(config.dtype, device, train_base=full)
    shared, _ = load_shared(config.model_name_or_path, dtype=dtype, device=device, train_base=full)
    adapter = "sft" if config.use_peft else None
    if adapter is not None and adapter not in shared.configs:
        shared.add_adapter(adapter, lora_config(config, shared))
    if config.activation_checkpointing:
        shared.checkpoint_activations()
    run = SFT(config, Policy(shared, adapter), rows)
    output = Path(str(config.output_dir))
    with Tracker(output, "SFT", run.steps, {"loss": "loss"}, quiet=bool(config.disable_tqdm)) as tracker:
        for step in range(run.steps):
            tracker.log(step + 1, run.step(step))
    if adapter is None:
        shared.base.save_pretrained(output)
    else:
        save_adapter(shared, adapter, output, base=config.model_name_or_path)
    tokenizer.save_pretrained(output)
    return output


def _encode(config: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> list[Encoded]:
    read = read_demonstrations(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    rows = []
    for number, row in enumerate(read.rows, 1):
        try:
            rows.append(encode_demonstration(tokenizer, row, max_length=config.max_length))
        except UsageError as error:
            if config.on_bad_row == "raise":
                raise UsageError(f"demonstration {number} of {config.dataset_name}: {error}") from error
            read.skipped.append(str(error))
    if not rows:
        raise UsageError(f"no demonstration of {config.dataset_name} fits max_length={config.max_length}; raise it.")
    return rows
