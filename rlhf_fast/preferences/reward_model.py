"""A reward model from its config: read and tokenise comparisons, train, evaluate, normalise, save."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.readers import read_comparisons
from rlhf_fast.data.rendering import Rendering, announce_comparisons, compare
from rlhf_fast.data.schema import Comparison, prompt_key
from rlhf_fast.data.split import split_by_prompt
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.load import load_shared, load_tokenizer, resolve_source
from rlhf_fast.model.lora_choice import describe_trained
from rlhf_fast.model.memory import held_bytes
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.adapter import add_reward_adapter
from rlhf_fast.preferences.comparisons import EncodedComparison, encode_comparisons
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.fit import RewardTraining, evaluate
from rlhf_fast.preferences.normalise import choose_prompts, normalise
from rlhf_fast.preferences.page import build_report
from rlhf_fast.preferences.result import REWARD_FACTS, RewardResult, read_history, read_result
from rlhf_fast.report.page import REPORT_FILE
from rlhf_fast.rollout.cache_size import refuse_unfitting
from rlhf_fast.rollout.sampling import stop_ids
from rlhf_fast.runtime.device import choose_device, choose_dtype, describe_device, describe_sizes, seed_everything
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.identity import fingerprint, weights_fingerprint
from rlhf_fast.runtime.loop import Run, finish, train
from rlhf_fast.runtime.output import alone
from rlhf_fast.runtime.passes import MORE_STEPS
from rlhf_fast.runtime.records import write_record
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.tracking import activity, describe_memory, read_metrics

ADAPTER = "reward"
logger = logging.getLogger(__name__)


@dataclass
class Split:
    """Tokenised comparisons, and how many were left out as bad or too long."""

    train: list[EncodedComparison]
    heldout: list[EncodedComparison]
    skipped: int


@alone
def run_reward(config: RewardConfig) -> RewardResult:
    """Train on `dataset_name`; writes the adapter with its head, the tokenizer, metrics, `reward_model.json` and
    `report.html`.

    Everything that the data or the config can get wrong raises `UsageError` before the first step.
    """
    if not config.model_name_or_path or not config.dataset_name:
        raise UsageError("a reward model needs model_name_or_path (SFT output or base) and dataset_name (comparisons).")
    output = Path(str(config.output_dir))
    seed_everything(config.seed)
    tokenizer = load_tokenizer(config.model_name_or_path, config.chat_template_path)
    split = read_split(config, tokenizer)
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device)
    start = choose_start(config, _inputs(config, split))
    if start.finished:
        return read_result(output)
    shared, sft = load_shared(config.model_name_or_path, dtype=dtype, device=device, shard=config.shard_base)
    check_context(shared, split)
    prompts = choose_prompts(split.train, config, shared.generation_length) if config.normalise else []
    refuse_unfitting(shared, max(map(len, prompts), default=0) + config.response_length)
    critic = add_reward_adapter(shared, config, sft=sft, name=ADAPTER)
    if config.activation_checkpointing:
        shared.checkpoint_activations()
    base, rendering = resolve_source(config.model_name_or_path).base, _rendering(config, tokenizer, split)
    training = RewardTraining(config, critic, split.train)
    run_facts = describe(training, split)
    run = Run(
        name="reward model", config=config, steps=training.steps, optimiser=training.optimiser, device=device,
        step=lambda step: training.step(step - 1), save=partial(_save, shared, tokenizer, base, rendering),
        facts=run_facts, more=MORE_STEPS, shown={"loss": "loss", "accuracy": "accuracy"},
        held=partial(held_bytes, [shared], training.optimiser),
    )  # fmt: skip
    checkpoints = train(run, start)
    checkpoints.save_results()  # before anything else can fail
    checkpoints.save_results()  # before anything else can fail
    budget = config.max_tokens_per_micro_batch
    with activity("scoring held-out responses, then samples of the start model", quiet=bool(config.disable_tqdm)):
        evaluation = evaluate(critic, split.heldout, max_tokens=budget) if split.heldout else None
        stop = stop_ids(tokenizer, model_eos=shared.eos_ids)
        scale = normalise(critic, Policy(shared, sft), prompts, stop, config) if prompts else None
    result = RewardResult(output, evaluation, scale, read_history(output))
    memory = {"Memory": describe_memory(device)}

    def page() -> None:
        report = build_report(output.name, run_facts | memory, read_metrics(output), result.evaluation)
        report.write(output / REPORT_FILE)

    def numbers() -> None:
        write_record(output / REWARD_FACTS, facts(config, split, result))

    finish(checkpoints, {REWARD_FACTS: numbers, REPORT_FILE: page})  # the results again, as the head has changed
    return result


def describe(training: RewardTraining, split: Split) -> dict[str, str]:
    """What the run is, in words, by topic."""
    model, sequences = training.critic.model, sum(len(c.sequences) for c in split.train)
    left_out = f", {split.skipped:,} more left out" if split.skipped else ""
    heldout = f", {len(split.heldout):,} held out" if split.heldout else ""
    tokens = sum(c.tokens for c in split.train)
    return {
        "Data": f"{len(split.train):,} comparisons of {sequences:,} responses, {tokens:,} tokens{left_out}{heldout}",
        "Steps": training.passes.describe(training.config.num_train_epochs, "comparisons"),
        "Trained": describe_trained(model, ADAPTER, training.critic.named_parameters()),
        "Computed": describe_device(model.dtype, model.device),
        "Sizes": describe_sizes(
            training.config.max_tokens_per_micro_batch,
            recompute=bool(training.config.activation_checkpointing),
            attention=model.attention,
        ),
    }


def _save(
    shared: SharedModel, tokenizer: PreTrainedTokenizerBase, base: str, rendering: Rendering, folder: Path
) -> None:
    save_adapter(shared, ADAPTER, folder, base=base)
    tokenizer.save_pretrained(folder)
    rendering.save(folder)


def _rendering(config: RewardConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> Rendering:
    """How the comparisons are rendered, said at the start, and where the model was trained on others."""
    rendering = announce_comparisons(
        tokenizer, [c.row for c in split.train], [c.sequences for c in split.train], [c.prompt for c in split.train],
        str(config.dataset_name),
    )  # fmt: skip
    compare(rendering, str(config.dataset_name), config.model_name_or_path)
    return rendering


def _inputs(config: RewardConfig, split: Split) -> dict[str, Any]:
    """What the result depends on beside the config."""
    source, rows = resolve_source(str(config.model_name_or_path)), (*split.train, *split.heldout)
    return {
        "contents of the data": fingerprint((c.sequences, c.row.ranks, c.row.probability) for c in rows),
        "contents of the model": weights_fingerprint((source.base, source.adapter)),
    }


def read_split(config: RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Split:
    """Read, split by prompt and tokenise, checking every row. Raises `UsageError`."""
    train, bad = _read(config, str(config.dataset_name))
    heldout: list[Comparison] = []
    if config.eval_dataset_name:
        heldout, more = _read(config, config.eval_dataset_name)
        bad += more
        _warn_of_shared_prompts(train, heldout)
    elif config.eval_fraction > 0:
        train, heldout = split_by_prompt(train, config.eval_fraction, config.seed)
    if heldout and all(len(set(row.ranks)) == 1 for row in heldout):
        raise UsageError(
            f"all {len(heldout)} held-out comparisons are ties, so no accuracy can be measured; expected some with "
            "different ranks. Raise eval_fraction, change seed, or give eval_dataset_name."
        )
    parts = []
    for name, rows in ((config.dataset_name, train), (config.eval_dataset_name or config.dataset_name, heldout)):
        parts.append(_encode(config, tokenizer, str(name), rows))
    return Split(parts[0][0], parts[1][0], bad + parts[0][1] + parts[1][1])


def check_context(shared: SharedModel, split: Split) -> None:
    """Raise `UsageError` if a sequence is longer than the model's context."""
    longest = max(len(sequence) for c in (*split.train, *split.heldout) for sequence in c.sequences)
    if shared.max_length is not None and longest > shared.max_length:
        raise UsageError(
            f"a prompt with a response has {longest} tokens and the model's context is {shared.max_length}. Set "
            f"max_length={shared.max_length} and on_bad_row=skip to leave such rows out, or shorten them."
        )


def facts(config: RewardConfig, split: Split, result: RewardResult) -> dict[str, Any]:
    """What `reward_model.json` holds: the data, the numbers, and the choices that made them."""
    chosen = (
        "model_name_or_path", "dataset_name", "eval_dataset_name", "eval_fraction", "seed", "num_train_epochs",
        "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "center_rewards_coefficient",
        "lora_layers", "max_length",
    )  # fmt: skip
    return {
        "comparisons": {"train": len(split.train), "heldout": len(split.heldout), "skipped": split.skipped},
        "evaluation": result.evaluation and asdict(result.evaluation),
        "normalisation": result.normalisation and asdict(result.normalisation),
        "steps": len(result.history),
        "config": {name: getattr(config, name) for name in chosen},
    }


def _read(config: RewardConfig, name: str) -> tuple[list[Comparison], int]:
    read = read_comparisons(name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    return read.rows, len(read.skipped)


def _encode(
    config: RewardConfig, tokenizer: PreTrainedTokenizerBase, name: str, rows: list[Comparison]
) -> tuple[list[EncodedComparison], int]:
    if not rows:
        return [], 0
    encoded, skipped = encode_comparisons(
        tokenizer, rows, max_length=config.max_length, on_bad_row=config.on_bad_row, source=name
    )
    return encoded, len(skipped)


def _warn_of_shared_prompts(train: list[Comparison], heldout: list[Comparison]) -> None:
    shared = {prompt_key(row.prompt) for row in train} & {prompt_key(row.prompt) for row in heldout}
    if shared:
        logger.warning(
            "%d prompts of eval_dataset_name are in dataset_name too: the accuracy will look better than it is",
            len(shared),
        )
