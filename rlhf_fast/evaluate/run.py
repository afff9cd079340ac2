"""An evaluation from its config: open the models, compare, write `evaluation.json` and `report.html`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rlhf_fast.data.fitting import prompt_room
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.rendering import compare as compare_rendering
from rlhf_fast.data.rendering import trained_stop
from rlhf_fast.evaluate.compare import Comparison, compare
from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.evaluate.models import Models, open_models
from rlhf_fast.evaluate.prompts import HeldOut
from rlhf_fast.evaluate.sections import examples, summary
from rlhf_fast.report.page import REPORT_FILE, Report
from rlhf_fast.report.sections import training
from rlhf_fast.rollout.sampling import Sampling, stop_ids
from rlhf_fast.rollout.stop_strings import stop_strings
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.output import refuse_unwritable
from rlhf_fast.runtime.records import write_record
from rlhf_fast.runtime.tracking import METRICS_FILE, activity, read_metrics

RESULT_FILE = "evaluation.json"


def run_evaluate(config: EvaluateConfig) -> Comparison:
    """Compare, write both files to `output_dir`, return the comparison. Raises `UsageError`."""
    refuse_many("evaluate")
    if not config.model_path or not config.dataset_name or not config.reward_model_paths:
        raise UsageError(
            "an evaluation needs model_path (the policy), dataset_name (held-out prompts) and reward_model_paths "
            "(one or more reward models)."
        )
    refuse_unwritable("output_dir", config.output_dir)
    read = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    device = choose_device(config.use_cpu)
    models = open_models(config, choose_dtype(config.dtype, device), device)
    prompts = HeldOut.encode(
        models.tokenizer, read.rows[: config.max_prompts], _room(config, models),
        source=config.dataset_name, on_bad_row=config.on_bad_row,
    )  # fmt: skip
    _compare_rendering(config, prompts)
    with activity(f"two responses to each of {len(prompts)} prompts, then their scores"):
        comparison = _compare(config, models, prompts)
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    write_record(output / RESULT_FILE, asdict(comparison) | {"over_optimised_under": comparison.over_optimised_under})
    build_report(comparison, config.model_path).write(output / REPORT_FILE)
    return comparison


def build_report(comparison: Comparison, model_path: str) -> Report:
    """The page of an evaluation; with training curves where the model's folder has its metrics."""
    title = f"{comparison.second_name} against {comparison.first_name}"
    report = Report(title, f"{len(comparison.pairs)} held-out prompts, one response of each policy to each.")
    report.add("Summary", summary(comparison))
    if (Path(model_path) / METRICS_FILE).is_file():
        report.add("Training", training(read_metrics(model_path)))
    report.add("Side by side", examples(comparison))
    return report


def _compare(config: EvaluateConfig, models: Models, prompts: HeldOut) -> Comparison:
    stop = stop_ids(
        models.tokenizer, stop_token_id=trained_stop(str(config.model_path)), model_eos=models.policy.model.eos_ids
    )
    strings = stop_strings(models.tokenizer, config.stop)
    return compare(
        models.baseline, models.policy, prompts, models.rewards, models.tokenizer,
        Sampling(config.response_length, stop, config.temperature, stop_strings=strings), names=models.names,
        seed=config.seed, max_batch=config.max_rollout_batch, max_tokens=config.max_tokens_per_micro_batch,
        max_kv_cache_gb=config.max_kv_cache_gb,
    )  # fmt: skip


def _compare_rendering(config: EvaluateConfig, prompts: HeldOut) -> None:
    """Say of each model where its training's prompts were rendered otherwise than these."""
    assert prompts.rendering is not None
    own = replace(prompts.rendering, stop_token_id=trained_stop(str(config.model_path)))
    paths = (config.model_path, config.baseline_path, *config.reward_model_paths)
    compare_rendering(own, str(config.dataset_name), *paths)


def _room(config: EvaluateConfig, models: Models) -> int | None:
    """Tokens that a prompt may have beside a response, in the smaller of the two contexts."""
    contexts = [policy.model.generation_length for policy in (models.baseline, models.policy)]
    return prompt_room(config.response_length, *contexts)
