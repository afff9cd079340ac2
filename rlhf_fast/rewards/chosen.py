"""The rewards that a config names, and those that were given from Python, as PPO asks them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rlhf_fast.rewards.endpoint import TIMEOUT, TOKEN, EndpointReward
from rlhf_fast.rewards.patient import PatientReward
from rlhf_fast.rewards.source import RewardSource
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import hide_secrets

ENDPOINT = "endpoint:"


def named_rewards(
    names: Sequence[str], weights: Sequence[float] | None, *, timeout: float | None
) -> list[tuple[RewardSource, float]]:
    """The rewards behind `endpoint:ADDRESS`, each with its weight (None: 1), with the token of the environment.

    Raises `UsageError` for other names.
    """
    weights = [1.0] * len(names) if weights is None else weights
    if len(weights) != len(names):
        raise UsageError(f"reward_weights has {len(weights)} numbers for {len(names)} reward_funcs; expected as many.")
    for name in names:
        if not name.startswith(ENDPOINT):
            raise UsageError(
                f"reward_funcs names {hide_secrets(name)!r}; expected endpoint:ADDRESS, as in "
                "endpoint:http://127.0.0.1:8000/score. A Python function is passed to run_ppo as a FunctionReward."
            )
    seconds = TIMEOUT if timeout is None else timeout
    token = os.environ.get(TOKEN)
    sources: list[RewardSource] = [EndpointReward(name.removeprefix(ENDPOINT), seconds, token) for name in names]
    return list(zip(sources, weights, strict=True))


def patient(
    rewards: Sequence[tuple[RewardSource, float]], *, timeout: float | None, retries: int
) -> list[tuple[RewardSource, float]]:
    """The same rewards, each asked again where it fails; an endpoint has a limit of its own where `timeout` is None."""
    return [(PatientReward(source, _limit(source, timeout), retries), weight) for source, weight in rewards]


def _limit(source: RewardSource, timeout: float | None) -> float | None:
    return source.timeout if timeout is None and isinstance(source, EndpointReward) else timeout
