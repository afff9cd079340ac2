"""Cross-validates the reward model of a config over prompts, on the pairs of PandaLM that two annotators agree on.

    python examples/reward_cross_validation.py --config examples/reward_pandalm.yaml [--folds 5] [--field value ...]

Every fold starts as the config says (a fresh adapter, or a copy of the one that model_name_or_path names), trains on
the prompts of the other folds, ties and split votes included, and judges its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rlhf_fast.data.readers import read_comparisons
from rlhf_fast.model.load import load_shared, load_tokenizer
from rlhf_fast.preferences.comparisons import EncodedComparison, encode_comparisons
from rlhf_fast.preferences.config import RewardConfig
from rlhf_fast.preferences.cross_validate import CrossValidation, cross_validate
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.parse import parse_config


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--folds", type=int, default=5)
    own, rest = parser.parse_known_args()
    config = parse_config(RewardConfig, rest, prog="reward_cross_validation.py")
    tokenizer = load_tokenizer(str(config.model_name_or_path), config.chat_template_path)
    rows = json.loads(Path(str(config.dataset_name)).read_text(encoding="utf-8"))

    def encoded(rows: list[dict[str, Any]]) -> list[EncodedComparison]:
        read = read_comparisons(rows, format="pandalm", on_bad_row=config.on_bad_row)
        return encode_comparisons(tokenizer, read.rows, max_length=config.max_length, on_bad_row=config.on_bad_row)[0]

    device = choose_device(config.use_cpu)
    shared, start = load_shared(
        str(config.model_name_or_path), dtype=choose_dtype(config.dtype, device), device=device, adapter="start"
    )
    result = cross_validate(
        shared, encoded(rows), config, own.folds, measured=encoded([r for r in rows if has_majority(r)]), start=start
    )
    print(table(result))


def has_majority(row: dict[str, Any]) -> bool:
    """Two of the three annotators chose the same response."""
    votes = [row[f"annotator{i}"] for i in (1, 2, 3)]
    return max(votes.count(1), votes.count(2)) >= 2


def table(result: CrossValidation) -> str:
    evaluation = result.evaluation
    lines = [f"{name:<36} {interval}" for name, interval in evaluation.accuracies]
    lines.insert(1, f"{'  interval with prompts as the unit':<36} {result.by_prompt}")
    lines += [f"{f'  fold {number}':<36} {interval}" for number, interval in enumerate(result.folds, 1)]
    lines.append(f"length-controlled accuracy {evaluation.length_controlled.value}")
    lines.append(f"expected calibration error {evaluation.calibration.error:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"reward_cross_validation.py: {error}")
