"""A warning when a policy's responses collapse into sameness."""

from __future__ import annotations

import logging
import math

from rlhf_fast.runtime.state import State

logger = logging.getLogger(__name__)
FLOOR = 0.6  # of the first iteration's distinct-2
REPETITION = 0.3


class CollapseWatch:
    """Compares distinct-2 with that of the first iteration, and repetition with a bound; warns once for each."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.warned: set[str] = set()

    def look(self, metrics: dict[str, float]) -> None:
        distinct, repetition = metrics["rollout/distinct_2"], metrics["rollout/repetition"]
        if self.first is None and not math.isnan(distinct):
            self.first = distinct
        if self.first is not None and distinct < FLOOR * self.first:
            self._warn("distinct", f"distinct-2 of the responses fell from {self.first:.2f} to {distinct:.2f}")
        if repetition > REPETITION:
            self._warn("repetition", f"{repetition:.0%} of the 3-grams in a response repeat earlier ones")

    def state(self) -> State:
        return State(facts={"first": self.first, "warned": sorted(self.warned)})

    def load_state(self, state: State) -> None:
        self.first, self.warned = state.facts["first"], set(state.facts["warned"])

    def _warn(self, kind: str, what: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("mode collapse: %s. Raise kl_coef, lower learning_rate, or stop earlier.", what)
