"""AdamW over named parameters, its schedule, and a step that refuses non-finite gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_scheduler

from rlhf_fast.runtime.checkpoint import State, Stateful
from rlhf_fast.runtime.config import StageConfig
from rlhf_fast.runtime.distributed import sum_gradients
from rlhf_fast.runtime.errors import StepFailed, UsageError
from rlhf_fast.runtime.memory import bytes_of
from rlhf_fast.runtime.phases import at

MAX_SKIPPED = 3


@dataclass
class Optimiser:
    """AdamW, a learning-rate schedule over `total_steps`, gradient clipping, and the count of skipped steps.

    `begun` counts the changes of the parameters in this process, from the moment that one begins. `pace` saves and
    restores the place of a schedule that is not the config's, with what it changes in the optimiser; by default a
    place is a number of steps, which has its rates in a schedule of any length.
    """

    parameters: list[nn.Parameter]
    adamw: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.LambdaLR
    max_grad_norm: float
    skipped: int = 0
    skipped_in_a_row: int = 0
    last_skipped: str = ""
    begun: int = 0
    pace: Stateful | None = None

    @classmethod
    def build(
        cls, config: StageConfig, named: Iterable[tuple[str, nn.Parameter]], total_steps: int, *,
        steps_per_rate: int = 1,
    ) -> Optimiser:  # fmt: skip
        """Weight decay goes to matrices only. The schedule is the config's (`lr_scheduler_type`, `warmup_steps`).

        `steps_per_rate` steps in a row share a learning rate: the schedule and its warmup then count such groups.
        """
        parameters = [parameter for _, parameter in named if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(
            groups, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon
        )
        return cls(parameters, adamw, _schedule(config, adamw, total_steps, steps_per_rate), config.max_grad_norm)

    def step(self, loss: float) -> float:
        """`clip`, then `advance`; returns the gradient norm before clipping."""
        norm = float(self.clip())
        self.advance(loss, norm)
        return norm

    def clip(self) -> Tensor:
        """Clip the gradients; returns their norm before, 0-dim, on the device.

        Of several processes each has its part of the gradient; the norm is that of the whole.
        """
        at("optimiser step")
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        sum_gradients(self.parameters)
        return torch.nn.utils.clip_grad_norm_(self.parameters, limit)

    def advance(self, loss: float, norm: float) -> None:
        """Step, advance the schedule, clear the gradients.

        A `loss` or a `norm` that is not finite skips step and schedule and counts it: see `refuse_stuck`.
        """
        if math.isfinite(loss) and math.isfinite(norm):
            self.begun += 1
            self.adamw.step()
            self.schedule.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row += 1
            self.last_skipped = f"loss {loss}, gradient norm {norm}"
        self.clear()

    def clear(self) -> None:
        """Forget the gradients."""
        self.adamw.zero_grad(set_to_none=True)

    def held_bytes(self) -> dict[str, int]:
        """Bytes of the gradients that are there now, and of AdamW's moments."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        moments = [value for moment in self.adamw.state.values() for value in moment.values()]
        return {"gradients": bytes_of(gradients), "optimiser": bytes_of(x for x in moments if isinstance(x, Tensor))}

    def refuse_stuck(self) -> None:
        """Raise `StepFailed` with a diagnosis if the last `MAX_SKIPPED` steps were skipped. For between two steps of a
        run, where its state is whole."""
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise StepFailed(
                f"{self.skipped_in_a_row} optimiser steps in a row had a loss or gradient that is not finite (last: "
                f"{self.last_skipped}), and were skipped. Check the rewards and the data for extreme values, or start "
                "again with a lower learning_rate or dtype=float32."
            )

    @property
    def learning_rate(self) -> float:
        return float(self.schedule.get_last_lr()[0])

    def state(self) -> State:
        """The trained parameters and their moments by position in AdamW (of an optimiser that keeps numbers beside
        tensors, these as facts), the schedule's place, the skipped steps."""
        tensors = {f"{i}/parameter": parameter.detach() for i, parameter in enumerate(self.in_order())}
        numbers: dict[str, Any] = {}
        for i, moments in self.adamw.state_dict()["state"].items():
            for key, value in moments.items():
                if not isinstance(value, (Tensor, int, float, type(None))):
                    raise UsageError(
                        f"{type(self.adamw).__name__} keeps a {type(value).__name__} for a parameter ({key}), which no "
                        "checkpoint holds: expected tensors and numbers. Use another optimizer."
                    )
                if isinstance(value, Tensor):
                    tensors[f"{i}/{key}"] = value
                else:
                    numbers[f"{i}/{key}"] = value
        place = self.schedule.last_epoch if self.pace is None else self.pace.state().facts
        facts = {"scheduled": place, "skipped": self.skipped, "in_a_row": self.skipped_in_a_row, "numbers": numbers}
        return State(tensors, facts)

    @torch.no_grad()
    def load_state(self, state: State) -> None:
        """Overwrite the parameters in place; the learning rate is the schedule's at the place that was saved.

        Raises `UsageError` where other parameters are trained.
        """
        moments: dict[int, dict[str, Any]] = {}
        for key, value in {**state.tensors, **state.facts.get("numbers", {})}.items():
            position, _, name = key.partition("/")
            moments.setdefault(int(position), {})[name] = value
        parameters = self.in_order()
        saved = [moments[i].pop("parameter") for i in sorted(moments)]
        if [value.shape for value in saved] != [parameter.shape for parameter in parameters]:
            raise UsageError(
                f"the checkpoint holds {len(saved)} trained parameters and {len(parameters)} are trained here, or "
                "their shapes differ: the model is not the one that it was written with. Give that model."
            )
        for parameter, value in zip(parameters, saved, strict=True):
            parameter.copy_(value)
        self.adamw.load_state_dict(self.adamw.state_dict() | {"state": {i: m for i, m in moments.items() if m}})
        if self.pace is None:
            self._schedule_to(state.facts["scheduled"])
        else:
            self.pace.load_state(State(facts=state.facts["scheduled"]))
        self.skipped, in_a_row = state.facts["skipped"], state.facts["in_a_row"]
        self.skipped_in_a_row = in_a_row if in_a_row < MAX_SKIPPED else 0  # a run that stopped for it may try again

    def in_order(self) -> list[nn.Parameter]:
        """What is trained, by position in AdamW."""
        return [parameter for group in self.adamw.param_groups for parameter in group["params"]]

    def _schedule_to(self, place: int) -> None:
        """As after `place` steps of this schedule, which may be of another length than the one that was saved."""
        schedule = self.schedule
        rates = [base * scale(place) for base, scale in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
        for group, rate in zip(self.adamw.param_groups, rates, strict=True):
            group["lr"] = rate
        schedule.last_epoch, schedule._step_count, schedule._last_lr = place, place + 1, rates


def _schedule(
    config: StageConfig, adamw: torch.optim.AdamW, total_steps: int, steps_per_rate: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The config's schedule. Raises `UsageError` for one whose arguments are missing or wrong."""
    name, rates, kwargs = config.lr_scheduler_type, -(-total_steps // steps_per_rate), config.lr_scheduler_kwargs
    assert not isinstance(kwargs, str)  # the config has read it
    try:
        schedule = get_scheduler(name, adamw, config.count_warmup(rates), rates, kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(f"lr_scheduler_type={name!r} cannot be used: {error}. Set lr_scheduler_kwargs.") from error
    if steps_per_rate > 1:
        schedule.lr_lambdas = [partial(_held, scale, steps_per_rate) for scale in schedule.lr_lambdas]
    return schedule


def _held(scale: Callable[[int], float], steps_per_rate: int, step: int) -> float:
    return scale(step // steps_per_rate)
