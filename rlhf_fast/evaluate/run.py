"""An evaluation from its config: open the models, compare, write `evaluation.json` and `report.html`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf_fast.data.readers import read_prompts
from rlhf_fast.evaluate.compare import Comparison, compare
from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.evaluate.models import Models, open_models
from rlhf_fast.evaluate.prompts import HeldOut
from rlhf_fast.evaluate.sections import examples, summary
from rlhf_fast.report.page import Report
from rlhf_fast.report.sections import training
from rlhf_fast.rollout.sampling import Sampling, stop_ids
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.tracking import METRICS_FILE, read_metrics

RESULT_FILE = "evaluation.json"
REPORT_FILE = "report.html"


def run_evaluate(config: EvaluateConfig) -> Comparison:
    """Compare, write both files to `output_dir`, return the comparison. Raises `UsageError`."""
    if not config.model_path or not config.dataset_name or not config.reward_model_paths:
        raise UsageError(
            "an evaluation needs model_path (the policy), dataset_name (held-out prompts) and reward_model_paths "
            "(one or more reward models)."
        )
    read = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    device = choose_device(config.use_cpu)
    models = open_models(config, choose_dtype(config.dtype, device), device)
    comparison = _compare(
        config, models, HeldOut.encode(models.tokenizer, read.rows[: config.max_prompts], _room(config, models))
    )
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    result = asdict(comparison) | {"over_optimised_under": comparison.over_optimised_under}
    (output / RESULT_FILE).write_text(json.dumps(_finite(result), indent=2) + "\n", encoding="utf-8")
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
    return compare(
        models.baseline, models.policy, prompts, models.rewards, models.tokenizer,
        Sampling(config.response_length, stop_ids(models.tokenizer), config.temperature), names=models.names,
        seed=config.seed, max_batch=config.max_rollout_batch, max_tokens=config.max_tokens_per_micro_batch,
    )  # fmt: skip


def _room(config: EvaluateConfig, models: Models) -> int | None:
    """Tokens that a prompt may have beside a response, in the smaller of the two contexts."""
    contexts = [p.model.max_length for p in (models.baseline, models.policy) if p.model.max_length is not None]
    return min(contexts) - config.response_length if contexts else None


def _finite(value: Any) -> Any:
    """The same with null for numbers that JSON cannot hold (NaN and infinities)."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
