"""A reward model from its config: train, evaluate, normalise, save; its numbers and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.rendering import Rendering, announce_comparisons, compare
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.load import load_shared, load_tokenizer, resolve_source
from rlhf_fast.model.lora_choice import describe_trained
from rlhf_fast.model.roles import Policy, held_bytes
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.preferences.comparisons import Split, check_context, read_split
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.fit import (
    Normalisation,
    RewardTraining,
    add_reward_adapter,
    choose_prompts,
    evaluate,
    normalise,
)
from rlhf_fast.preferences.metrics import Evaluation
from rlhf_fast.report.page import REPORT_FILE, Report, run_report
from rlhf_fast.report.sections import accuracies, calibration
from rlhf_fast.rollout.engine import refuse_unfitting
from rlhf_fast.rollout.sampling import stop_ids
from rlhf_fast.runtime.device import choose_device, choose_dtype, describe_device, describe_sizes, seed_everything
from rlhf_fast.runtime.distributed import from_main
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import build_record, read_record, write_record
from rlhf_fast.runtime.identity import fingerprint, weights_fingerprint
from rlhf_fast.runtime.loop import Run, finish, train
from rlhf_fast.runtime.output import alone
from rlhf_fast.runtime.passes import MORE_STEPS
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.tracking import activity, describe_memory, read_metrics

ADAPTER = "reward"


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
        facts=run_facts, longer_by=MORE_STEPS, progress={"loss": "loss", "accuracy": "accuracy"},
        held=partial(held_bytes, [shared], training.optimiser),
    )  # fmt: skip
    checkpoints = train(run, start)
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


def build_report(
    name: str, facts: Mapping[str, str], metrics: Sequence[Mapping[str, float]], evaluation: Evaluation | None
) -> Report:
    """facts: what the run was, in words, by topic; metrics: the rows of metrics.jsonl; evaluation: None without
    held-out comparisons."""
    measured = f"measured on {evaluation.accuracy.count:,} held-out pairs" if evaluation else "nothing held out"
    report = run_report(name, f"A reward model, {measured}.", facts, metrics)
    if evaluation:
        report.add("Accuracy on held-out pairs", accuracies(evaluation.accuracies), length_note(evaluation))
        report.add("Calibration", calibration_section(evaluation))
    return report


def calibration_section(evaluation: Evaluation) -> str:
    return calibration([(b.predicted, b.observed, b.count) for b in evaluation.calibration.bins])


def length_note(evaluation: Evaluation) -> str:
    value = evaluation.length_controlled.value
    if value is None:
        return "There are no pairs of both kinds, so accuracy cannot be controlled for length."
    return f"Length-controlled accuracy {value:.3f}: the mean over pairs that the longer, and the shorter response won."


REWARD_FACTS = "reward_model.json"


@dataclass(frozen=True)
class RewardResult:
    """What a run gave; evaluation and normalisation are None where the config turned them off."""

    output: Path
    evaluation: Evaluation | None
    normalisation: Normalisation | None
    history: list[dict[str, float]]

    def __str__(self) -> str:
        lines = [str(self.output)]
        if self.evaluation:
            lines += [f"  {name:<24} {interval}" for name, interval in self.evaluation.accuracies]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Numbers:
    """What `REWARD_FACTS` holds of a result."""

    evaluation: Evaluation | None
    normalisation: Normalisation | None


def read_result(output: Path) -> RewardResult:
    """What a finished run left in `output`, as process 0 sees it. Raises `UsageError`."""
    numbers = build_record(_Numbers, from_main(lambda: asdict(read_record(output / REWARD_FACTS, _Numbers))))
    return RewardResult(output, numbers.evaluation, numbers.normalisation, read_history(output))


def read_history(output: Path) -> list[dict[str, float]]:
    """The metrics of each step, without its number and the time, as process 0 sees them."""
    rows = from_main(lambda: read_metrics(output))
    return [{k: v for k, v in row.items() if k not in ("step", "seconds")} for row in rows]
