"""An optimiser and a schedule of the script's own in place of AdamW and the config's schedule."""

from __future__ import annotations

from typing import Any

import torch

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser

Optimisers = tuple[torch.optim.Optimizer | None, Any]


class OnceAnIteration:
    """A schedule that takes one step for every `steps` that it is told to take."""

    def __init__(self, schedule: Any, steps: int) -> None:
        vars(self).update(schedule=schedule, steps=steps, told=0)

    def step(self) -> None:
        vars(self)["told"] += 1
        if self.told % self.steps == 0:
            self.schedule.step()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.schedule, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.schedule, name, value)


def refuse_half(own: torch.optim.Optimizer | None, schedule: Any) -> None:
    """Raise `UsageError` for a schedule of another optimizer."""
    if schedule is not None and schedule.optimizer is not own:
        raise UsageError("optimizers has a schedule of another optimizer; give both, the schedule made with the first.")


def use_given(optimiser: Optimiser, own: torch.optim.Optimizer, schedule: Any, steps_per_rate: int) -> None:
    """Put the given ones into `optimiser`, in place. The schedule takes a step every `steps_per_rate` optimiser steps.

    Raises `UsageError` unless they hold exactly the parameters that are trained; frozen ones beside them do no harm.
    """
    if own is optimiser.adamw and schedule is optimiser.schedule:
        return
    refuse_half(own, schedule)
    held = {id(p): p for group in own.param_groups for p in group["params"]}
    trained = {id(p) for p in optimiser.parameters}
    others = [p for key, p in held.items() if key not in trained and p.requires_grad]
    if trained - held.keys() or others:
        raise UsageError(
            f"the optimizer given holds {len(held.keys() & trained)} of the {len(trained)} tensors that are trained, "
            f"and {len(others)} others; expected exactly those. Make it from the parameters of model and value_model "
            "without peft_config, or in create_optimizer from those of self.model, or leave optimizers out."
        )
    optimiser.adamw = own  # type: ignore[assignment]
    optimiser.schedule = schedule if steps_per_rate == 1 else OnceAnIteration(schedule, steps_per_rate)  # type: ignore[assignment]
