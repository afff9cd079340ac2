"""Warnings of a policy's responses: that they collapse into sameness, or that the budget cuts most of them."""

from __future__ import annotations

import logging
import math

from rlhf_fast.runtime.checkpoint import State

logger = logging.getLogger(__name__)
FLOOR = 0.6  # of the first iteration's distinct-2
REPETITION = 0.3
CUT = 0.75  # of the responses


class CollapseWatch:
    """Compares distinct-2 with that of the first iteration, repetition with a bound, and how many responses are cut by
    the budget; warns once for each. budget: response_length, None where nothing ends a response before it."""

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.first: float | None = None
        self.warned: set[str] = set()

    def look(self, metrics: dict[str, float]) -> None:
        distinct, repetition = metrics["rollout/distinct_2"], metrics["rollout/repetition"]
        if self.first is None and not math.isnan(distinct):
            self.first = distinct
        if self.first is not None and distinct < FLOOR * self.first:
            self._collapse("distinct", f"distinct-2 of the responses fell from {self.first:.2f} to {distinct:.2f}")
        if repetition > REPETITION:
            self._collapse("repetition", f"{repetition:.0%} of the 3-grams in a response repeat earlier ones")
        if self.budget is not None and (cut := metrics["rollout/truncated_fraction"]) >= CUT:
            self._warn(
                "cut", f"{cut:.0%} of the responses were cut off by response_length={self.budget} before they ended, "
                "and are scored and learnt like that. Raise it, or start from a model that ends its replies.",
            )  # fmt: skip

    def state(self) -> State:
        return State(facts={"first": self.first, "warned": sorted(self.warned)})

    def load_state(self, state: State) -> None:
        self.first, self.warned = state.facts["first"], set(state.facts["warned"])

    def _collapse(self, kind: str, what: str) -> None:
        self._warn(kind, f"mode collapse: {what}. Raise kl_coef, lower learning_rate, or stop earlier.")

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self.warned:
            self.warned.add(kind)
            logger.warning("%s", text)
