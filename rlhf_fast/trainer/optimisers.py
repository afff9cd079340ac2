"""An optimiser and a schedule of the script's own in place of AdamW and the config's schedule: what can take the
steps, how often the schedule does, and how both are saved and restored."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from rlhf_fast.runtime.checkpoint import State
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.optimiser import Optimiser

Optimisers = tuple[torch.optim.Optimizer | None, Any]
_KINDS: dict[str, type] = {kind.__name__: kind for kind in (dict, Counter, tuple)}
"""What JSON has no word for, by name: written as {name: its items}."""


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


class Pace:
    """A part of a run: where a given schedule stands, by its `state_dict`, and what it changes in the optimiser's
    groups (rates, momentum). Functions in it are no state: the script that goes on hands them over again.

    Raises `UsageError` for a schedule whose state holds something else than numbers, texts and lists of them.
    """

    def __init__(self, own: torch.optim.Optimizer, schedule: Any, steps: int) -> None:
        self.own, self.schedule, self.counter = own, schedule, OnceAnIteration(schedule, steps)
        self.state()

    def state(self) -> State:
        kind = type(self.schedule).__name__
        place = {
            key: _to_json(value, f"{kind}'s {key}")
            for key, value in self.schedule.state_dict().items()
            if not callable(value)
        }
        groups = [{k: _to_json(v, k) for k, v in group.items() if _moves(v)} for group in self.own.param_groups]
        return State(facts={"told": self.counter.told, "schedule": place, "groups": groups})

    def describe(self, state: State) -> dict[str, Any]:
        """How optimiser and schedule stand by `state`, of JSON's kinds, by their names; torch's own notes left out."""
        schedule = {key: value for key, value in state.facts["schedule"].items() if not key.startswith("_")}
        kinds = [type(one).__name__ for one in (self.own, self.schedule)]
        return {f"optimizer {kinds[0]}": state.facts["groups"], f"schedule {kinds[1]}": schedule}

    def load_state(self, state: State) -> None:
        """Overwrite schedule and groups in place."""
        vars(self.counter)["told"] = state.facts["told"]
        saved = {key: _from_json(value) for key, value in state.facts["schedule"].items()}
        self.schedule.load_state_dict(self.schedule.state_dict() | saved)
        for group, values in zip(self.own.param_groups, state.facts["groups"], strict=True):
            for key, value in values.items():
                if isinstance(group.get(key), Tensor):
                    group[key].fill_(value)
                else:
                    group[key] = _from_json(value)


def refuse_half(own: torch.optim.Optimizer | None, schedule: Any) -> None:
    """Raise `UsageError` for a schedule of another optimizer, one that cannot say where it stands, and for an optimizer
    or a schedule whose step needs more than to be told."""
    if own is not None and (needed := _needed(own)):
        raise UsageError(
            f"the optimizer given is a {type(own).__name__}, whose step() needs {', '.join(needed)}; expected one that "
            "takes its step from the gradients alone, such as SGD or AdamW."
        )
    if schedule is None:
        return
    if schedule.optimizer is not own:
        raise UsageError("optimizers has a schedule of another optimizer; give both, the schedule made with the first.")
    kind = type(schedule).__name__
    if needed := _needed(schedule):
        raise UsageError(
            f"the schedule given is a {kind}, whose step() needs {', '.join(needed)}; expected one that counts steps, "
            "such as LambdaLR or StepLR, as there is nothing to tell it."
        )
    if not (hasattr(schedule, "state_dict") and hasattr(schedule, "load_state_dict")):
        raise UsageError(
            f"the schedule given is a {kind} without state_dict and load_state_dict, so that a checkpoint could not "
            "hold where it stands. Give it both, or take a schedule of torch.optim.lr_scheduler."
        )


def use_given(optimiser: Optimiser, own: torch.optim.Optimizer, schedule: Any, steps_per_rate: int) -> None:
    """Put the given ones into `optimiser`, in place. The schedule takes a step every `steps_per_rate` optimiser steps.

    Raises `UsageError` unless they hold exactly the parameters that are trained (frozen ones beside them do no harm),
    and a checkpoint can hold where they stand.
    """
    if own is optimiser.adamw and schedule in (optimiser.schedule, getattr(optimiser.schedule, "schedule", None)):
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
    pace = Pace(own, schedule, steps_per_rate)
    optimiser.adamw, optimiser.pace = own, pace  # type: ignore[assignment]
    optimiser.schedule = pace.counter  # type: ignore[assignment]


def described(optimiser: Optimiser) -> dict[str, Any]:
    """How the given optimiser and schedule stand now; nothing where both are the config's."""
    return optimiser.pace.describe(optimiser.pace.state()) if isinstance(optimiser.pace, Pace) else {}


def _needed(one: Any) -> list[str]:
    """Arguments without which the `step` of its class (torch wraps the object's own) cannot be called."""
    _, *others = inspect.signature(type(one).step).parameters.values()
    given = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [argument.name for argument in others if argument.default is argument.empty and argument.kind not in given]


def _moves(value: Any) -> bool:
    """Whether a group's value may be one that a schedule changes: numbers, and pairs of them."""
    parts = value if isinstance(value, (tuple, list)) else [value]
    return all(
        (isinstance(part, (int, float)) and not isinstance(part, bool)) or (isinstance(part, Tensor) and part.ndim == 0)
        for part in parts
    )


def _to_json(value: Any, where: str) -> Any:
    """`value` as JSON gives it back; a tensor of one number as that. Raises `UsageError` naming `where`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and value.ndim == 0:
        return float(value)
    if isinstance(value, list):
        return [_to_json(part, where) for part in value]
    if type(value).__name__ in _KINDS and isinstance(value, dict):
        return {type(value).__name__: [[_to_json(k, where), _to_json(v, where)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_to_json(part, where) for part in value]}
    raise UsageError(
        f"the schedule given cannot be saved: {where} holds a {type(value).__name__}, and a checkpoint holds numbers, "
        "texts and lists of them. Give a function to LambdaLR, not an object that keeps more."
    )


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(part) for part in value]
    if isinstance(value, dict):
        ((name, items),) = value.items()
        made = [_from_json(part) for part in items]
        return _KINDS[name](made) if name == "tuple" else _KINDS[name](dict(made))
    return value
