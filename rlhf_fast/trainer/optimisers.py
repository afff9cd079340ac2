"""An optimiser and a schedule of the script's own in place of AdamW and the config's schedule."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser

Optimisers = tuple[torch.optim.Optimizer | None, LambdaLR | None]


def use_given(optimiser: Optimiser, given: Optimisers) -> None:
    """Put the given ones into `optimiser`, in place. A schedule is stepped once an optimiser step.

    Raises `UsageError` unless they hold exactly the parameters that are trained.
    """
    own, schedule = given
    if own is None and schedule is None:
        return
    if own is None or (schedule is not None and schedule.optimizer is not own):
        raise UsageError("optimizers has a schedule of another optimizer; give both, the schedule made with the first.")
    held = {id(p) for group in own.param_groups for p in group["params"]}
    trained = {id(p) for p in optimiser.parameters}
    if held != trained:
        raise UsageError(
            f"the optimizer given holds {len(held & trained)} of the {len(trained)} tensors that are trained, and "
            f"{len(held - trained)} others; expected exactly those. Make it from the parameters of model and "
            "value_model without peft_config, or leave optimizers out."
        )
    optimiser.adamw = own  # type: ignore[assignment]
    optimiser.schedule = schedule if schedule is not None else LambdaLR(own, lambda _: 1.0)
