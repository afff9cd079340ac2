"""What training a reward model gives, and what is left of it in its folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from rlhf_fast.preferences.fit import Evaluation
from rlhf_fast.preferences.normalise import Normalisation
from rlhf_fast.runtime.distributed import from_main
from rlhf_fast.runtime.records import build_record, read_record
from rlhf_fast.runtime.tracking import read_metrics

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
