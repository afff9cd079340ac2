"""Supervised fine-tuning: cross-entropy on response tokens, sequences packed side by side without padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import Encoded, encode_demonstration
from rlhf_fast.data.fitting import encode_rows
from rlhf_fast.data.readers import read_demonstrations
from rlhf_fast.data.rendering import Rendering, announce_demonstrations, compare
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.batches import NO_SEQUENCES, MicroBatches, by_tokens
from rlhf_fast.model.load import context_of, load_shared, load_tokenizer, resolve_source
from rlhf_fast.model.lora_choice import add_trained, check_layers, check_shape, describe_trained, train_only
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy, held_bytes
from rlhf_fast.report.page import REPORT_FILE
from rlhf_fast.rollout.sampling import end_with, stop_ids
from rlhf_fast.runtime.device import choose_device, choose_dtype, describe_device, describe_sizes, seed_everything
from rlhf_fast.runtime.distributed import own_share, sum_over_processes
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.identity import fingerprint, weights_fingerprint
from rlhf_fast.runtime.loop import Hooks, Run, finish, train
from rlhf_fast.runtime.optimiser import Optimiser
from rlhf_fast.runtime.output import alone
from rlhf_fast.runtime.passes import MORE_STEPS, Passes
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.tracking import describe_memory
from rlhf_fast.train.config import SFTConfig
from rlhf_fast.train.pages import write_sft_page
from rlhf_kernels import IGNORED


@dataclass
class SFT:
    """A run's state: the policy being trained and the tokenised demonstrations."""

    config: SFTConfig
    policy: Policy
    rows: list[Encoded]
    heldout: list[Encoded]

    def __post_init__(self) -> None:
        c = self.config
        self.passes = Passes(len(self.rows), c.batch_size, c.seed)
        self.steps = self.passes.steps(c.num_train_epochs)
        self.optimiser = Optimiser.build(c, self.policy.named_parameters(), self.steps)
        self.micro_batches = MicroBatches.of(c, clear_gradients=self.optimiser.clear)

    def batch(self, step: int) -> list[Encoded]:
        """Passes over all rows, each in an order of its own."""
        return [self.rows[row] for row in self.passes.step(step)]

    def step(self, index: int) -> dict[str, float]:
        """One optimiser step: the mean negative log-prob over all response tokens of the batch."""
        loss = self.loss(self.batch(index))
        metrics = {"loss": loss, "grad_norm": self.optimiser.step(loss), "lr": self.optimiser.learning_rate}
        return metrics | self.micro_batches.metrics()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """`eval_loss`, the same mean over the held-out demonstrations, where there are any."""
        return {"eval_loss": self.loss(self.heldout)} if self.heldout else {}

    def loss(self, rows: list[Encoded]) -> float:
        """The mean loss over the response tokens of `rows`, whose gradient is added where gradients are on.

        Of several processes each takes its share of the rows; their gradients and losses add up.
        """
        tokens = max(1, sum(label != IGNORED for row in rows for label in row.labels[1:]))
        own = list(own_share(rows))

        def backward(numbers: list[int], weight: float) -> torch.Tensor:
            part = [own[i] for i in numbers] or rows[:1]
            packed = Packed.from_sequences(
                [row.input_ids for row in part], [row.labels for row in part], self.policy.model.device
            )
            loss = -self.policy.logprobs(packed).logprobs.sum() / tokens * weight
            if loss.requires_grad:
                loss.backward()
            return loss.detach()

        cut = by_tokens([len(row.input_ids) for row in own])
        losses = self.micro_batches.run(self.policy.model, cut, backward, spare=NO_SEQUENCES)
        return sum_over_processes(sum(torch.stack(losses).tolist()) if losses else 0.0)[0]


class Evaluating(Hooks):
    """The held-out loss before the first step of all."""

    def __init__(self, sft: SFT) -> None:
        self.sft = sft

    def begin(self, done: int) -> dict[str, float]:
        return {} if done else self.sft.evaluate()


@alone
def run_sft(config: SFTConfig) -> Path:
    """Read, tokenise, train, save; returns the folder of the model (full) or adapter (LoRA).

    Everything that the data or the config can get wrong raises `UsageError` before the first step.
    """
    if not config.model_name_or_path or not config.dataset_name:
        raise UsageError("SFT needs model_name_or_path (the base model) and dataset_name (the demonstrations).")
    output = Path(str(config.output_dir))
    seed_everything(config.seed)
    tokenizer = load_tokenizer(config.model_name_or_path, config.chat_template_path)
    context = context_of(config.model_name_or_path)
    rows, rendering, count, left_out = _encode(config, config.dataset_name, tokenizer, context)
    heldout = _encode(config, config.eval_dataset_name, tokenizer, context)[0] if config.eval_dataset_name else []
    compare(rendering, config.dataset_name, config.model_name_or_path)
    start = choose_start(config, _inputs(config, rows + heldout))
    if start.finished:
        return output
    policy = _policy(config)
    if config.activation_checkpointing:
        policy.model.checkpoint_activations()
    sft = SFT(config, policy, rows, heldout)
    stop, base = stop_ids(tokenizer, model_eos=policy.model.eos_ids), resolve_source(config.model_name_or_path).base
    rendering = rendering.after(Rendering.read(config.model_name_or_path))
    facts, device = describe(sft, count, left_out), policy.model.device
    run = Run(
        name="SFT", config=config, steps=sft.steps, optimiser=sft.optimiser, device=device,
        step=lambda step: sft.step(step - 1) | (sft.evaluate() if step == sft.steps else {}),
        save=partial(_save, policy, tokenizer, base, stop, rendering),
        facts=facts, longer_by=MORE_STEPS, progress={"loss": "loss", "eval_loss": "held out"},
        held=partial(held_bytes, [policy.model], sft.optimiser), hooks=Evaluating(sft),
    )  # fmt: skip

    def page() -> None:
        memory = {"Memory": describe_memory(device)}
        write_sft_page(output, facts | memory, tokenizer, heldout or rows, held_out=bool(heldout))

    finish(train(run, start), {REPORT_FILE: page})
    return output


def describe(run: SFT, rows: int, left_out: int) -> dict[str, str]:
    """What the run is, in words, by topic; rows: of the data that are learnt, left_out: that are not."""
    model, tokens = run.policy.model, sum(len(row.input_ids) for row in run.rows)
    learnt = sum(label != IGNORED for row in run.rows for label in row.labels)
    noun = "rows" if rows == len(run.rows) else "sequences"
    data = f"{rows:,} rows" + (f" in {len(run.rows):,} sequences" if noun == "sequences" else "")
    data += f" of {tokens:,} tokens, {learnt:,} of them learnt" + (f", {left_out:,} more left out" if left_out else "")
    return {
        "Data": data + (f", {len(run.heldout):,} held out" if run.heldout else ""),
        "Steps": run.passes.describe(run.config.num_train_epochs, noun),
        "Trained": describe_trained(model, run.policy.adapter, run.policy.named_parameters()),
        "Computed": describe_device(model.dtype, model.device),
        "Sizes": describe_sizes(
            run.config.max_tokens_per_micro_batch,
            recompute=bool(run.config.activation_checkpointing),
            attention=model.attention,
        ),
    }


def _inputs(config: SFTConfig, rows: list[Encoded]) -> dict[str, Any]:
    """What the result depends on beside the config."""
    source = resolve_source(str(config.model_name_or_path))
    return {
        "contents of the data": fingerprint((row.input_ids, row.labels) for row in rows),
        "contents of the model": weights_fingerprint((source.base, source.adapter)),
    }


def _save(
    policy: Policy, tokenizer: PreTrainedTokenizerBase, base: str, stop: tuple[int, ...], rendering: Rendering,
    folder: Path,
) -> None:  # fmt: skip
    if policy.adapter is None:
        end_with(policy.model.base, stop)
        policy.model.base.save_pretrained(folder)
    else:
        save_adapter(policy.model, policy.adapter, folder, base=base)
    tokenizer.save_pretrained(folder)
    rendering.save(folder)


def _policy(config: SFTConfig) -> Policy:
    """What is trained: all weights, a fresh adapter, or the adapter whose folder is given, further."""
    path, full = str(config.model_name_or_path), not config.use_peft
    if full and resolve_source(path).adapter is not None:
        raise UsageError(
            f"use_peft=false trains all weights of a model, and {path!r} is an adapter folder. Give a model, or leave "
            "use_peft at true to train the adapter further."
        )
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device, train_base=full)
    shared, adapter = load_shared(path, dtype=dtype, device=device, train_base=full, shard=config.shard_base)
    if adapter is not None:
        check_layers(shared, config)
        check_shape(shared, config, adapter)
        train_only(shared, adapter, config.lora_layers)
    elif not full:
        adapter = "sft"
        add_trained(shared, config, adapter, copy_of=None)
    return Policy(shared, adapter)


def _encode(
    config: SFTConfig, source: str, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> tuple[list[Encoded], Rendering, int, int]:
    """Sequences to learn, one or several a row; how they were rendered; of how many rows they are, and how many more
    are left out."""
    limit = min(config.max_length, context or config.max_length)
    read = read_demonstrations(source, format=config.dataset_format, on_bad_row=config.on_bad_row)
    fitting = encode_rows(
        read.rows, lambda row: encode_demonstration(tokenizer, row, max_length=limit),
        noun="demonstration", source=source, on_bad_row=config.on_bad_row,
    )  # fmt: skip
    parts = [sequences for _, sequences in fitting]
    rendering = announce_demonstrations(tokenizer, [row for row, _ in fitting], parts, source)
    encoded = [encoded for sequences in parts for encoded in sequences]
    return encoded, rendering, len(fitting), len(read.skipped) + len(fitting.skipped)
