"""The rewards of a run, from the names of a config and from what is given in Python, as a list of sources with weights.

A config names an address (`endpoint:ADDRESS`) or a Python function (`module:function`, `path/to/file.py:function`). In
Python a reward is a function, a source, or either with its weight. A function is called as it is in the code: its name
stands in the metrics, with a number behind it where two have the same.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import inspect
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard

from torch import nn

from rlhf_fast.rewards.endpoint import TIMEOUT, TOKEN, EndpointReward
from rlhf_fast.rewards.function import FunctionReward, RewardFunction, told
from rlhf_fast.rewards.retrying import RetryingReward
from rlhf_fast.rewards.source import RewardSource
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import hide_secrets

ENDPOINT = "endpoint:"
MODEL = "reward_model"
"""The name of PPO's reward model beside the others."""
GivenReward = RewardSource | RewardFunction | tuple[RewardSource | RewardFunction, float]
_FORMS = "endpoint:ADDRESS (as in endpoint:http://127.0.0.1:8000/score), module:function or path/to/file.py:function"
_GIVEN = "a function, a reward source (FunctionReward, EndpointReward, ...), or a pair of one and its weight"


def choose_rewards(
    names: Sequence[str], weights: Sequence[float] | None, given: Sequence[GivenReward] = (), *,
    timeout: float | None, taken: Iterable[str] = (MODEL,),
) -> list[tuple[RewardSource, float]]:  # fmt: skip
    """The rewards that a config names, with its weights (None: 1 each), then those given in Python, in their order.

    timeout: seconds of an endpoint; taken: names that functions cannot have, as others do. Endpoints get the token of
    the environment. Raises `UsageError` for what cannot be imported, called or understood.
    """
    weights = [1.0] * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise UsageError(f"reward_weights has {len(weights)} numbers for {len(names)} reward_funcs; expected as many.")
    pairs = [(_named(name, timeout), float(weight)) for name, weight in zip(names, weights, strict=True)]
    if is_source(given) or not isinstance(given, Sequence):
        raise UsageError(f"rewards is {_shown(given)}; expected a list, each item {_GIVEN}. Put it in brackets.")
    pairs += [_pair(reward) for reward in given]
    used = {*taken, *(reward.name for reward, _ in pairs if is_source(reward))}
    sources: list[tuple[RewardSource, float]] = []
    for reward, weight in pairs:
        source = reward if is_source(reward) else FunctionReward(_free_name(name_of(reward), used), reward)
        used.add(source.name)
        sources.append((source, weight))
    return sources


def refuse_columns(rewards: Sequence[tuple[RewardSource, float]], columns: Mapping[str, Sequence[Any]]) -> None:
    """Raise `UsageError`, before anything is asked, where a function or endpoint could not be given these columns."""
    for source, _ in rewards:
        if isinstance(source, FunctionReward):
            source.check_signature(columns)
        if isinstance(source, EndpointReward):
            source.check_columns(columns)


def with_retries(
    rewards: Sequence[tuple[RewardSource, float]], *, timeout: float | None, retries: int
) -> list[tuple[RewardSource, float]]:
    """The same rewards, each asked again where it fails; an endpoint has a limit of its own where `timeout` is None."""
    return [(RetryingReward(source, _limit(source, timeout), retries), weight) for source, weight in rewards]


def is_source(reward: Any) -> TypeGuard[RewardSource]:
    return not inspect.isclass(reward) and hasattr(reward, "score") and hasattr(reward, "name")


def name_of(function: Any) -> str:
    """What a function is called in its code; `reward` for one without a name, such as a lambda."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return name if name.isidentifier() else "reward"


def _free_name(name: str, used: set[str]) -> str:
    numbered = (f"{name}_{number}" for number in range(2, len(used) + 3))
    return name if name not in used else next(other for other in numbered if other not in used)


def _limit(source: RewardSource, timeout: float | None) -> float | None:
    return source.timeout if timeout is None and isinstance(source, EndpointReward) else timeout


def _pair(given: Any) -> tuple[Any, float]:
    """A reward as a script gives it, and its weight."""
    reward, weight = given if isinstance(given, tuple) and len(given) == 2 else (given, 1.0)
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise UsageError(f"the weight of reward {_shown(reward)} is {weight!r}; expected a finite number.")
    _refuse_uncallable(reward, f"the reward {_shown(reward)}", _GIVEN)
    return reward, float(weight)


def _refuse_uncallable(reward: Any, what: str, expected: str) -> None:
    if inspect.isclass(reward):
        raise UsageError(f"{what} is a class; expected {expected}. Give an instance, or a function.")
    if isinstance(reward, nn.Module):
        raise UsageError(
            f"{what} is a model; expected {expected}. Give its folder as the reward model, or wrap it: "
            "ClassifierReward(name, model, its tokenizer)."
        )
    if not is_source(reward) and not callable(reward):
        raise UsageError(f"{what} is a {type(reward).__name__}; expected {expected}.")


def _shown(reward: Any) -> str:
    return getattr(reward, "__name__", None) or repr(reward)[:80]


def _named(name: str, timeout: float | None) -> Any:
    if name.startswith(ENDPOINT):
        address = name.removeprefix(ENDPOINT)
        return EndpointReward(address, TIMEOUT if timeout is None else timeout, os.environ.get(TOKEN))
    place, _, path = name.rpartition(":")
    if not place or not all(part.isidentifier() for part in path.split(".")):
        raise UsageError(f"reward_funcs names {hide_secrets(name)!r}; expected {_FORMS}.")
    module = _of_file(name, Path(place)) if place.endswith(".py") or "/" in place else _of_module(name, place)
    reward: Any = module
    for part in path.split("."):
        if not hasattr(reward, part):
            close = difflib.get_close_matches(part, dir(reward), n=3)
            hint = f"Did you mean {' or '.join(close)}?" if close else "Define it there, or correct the name."
            raise UsageError(f"reward_funcs names {name!r}: {place} has no {path!r}. {hint}")
        reward = getattr(reward, part)
    _refuse_uncallable(reward, f"{name!r} of reward_funcs", "a function, or an instance that is called as one")
    return reward


def _of_module(name: str, place: str) -> ModuleType:
    """The module, which may lie in the current folder."""
    _importable(Path.cwd())
    importlib.invalidate_caches()
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise _not_imported(
            name, error, f"Run from the folder that holds {place}, install it, or give path/to/file.py:function"
        ) from error


def _of_file(name: str, path: Path) -> ModuleType:
    """The module of a file, imported once, with its folder importable as for a script that is run."""
    if not path.is_file():
        raise UsageError(
            f"reward_funcs names {name!r}: there is no file {str(path)!r} (from {Path.cwd()}). Correct the path."
        )
    path = path.resolve()
    own = f"reward file {path}"
    if own in sys.modules:
        return sys.modules[own]
    spec = importlib.util.spec_from_file_location(own, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"reward_funcs names {name!r}: {path.name} is no Python file; expected one that ends in .py.")
    _importable(path.parent)
    module = sys.modules[own] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[own]
        raise _not_imported(name, error, "Mend the file, or install what it imports") from error
    return module


def _importable(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _not_imported(name: str, error: BaseException, remedy: str) -> UsageError:
    return UsageError(f"reward_funcs names {name!r}, which cannot be imported: {told(error)} {remedy}.")
