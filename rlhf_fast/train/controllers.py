"""The weight of the KL penalty over a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FixedKL:
    coef: float

    def update(self, kl: float, episodes: int) -> None:
        """Nothing changes."""


@dataclass
class AdaptiveKL:
    """Proportional controller in log space (Ziegler et al. 2019, section 2.2)."""

    coef: float
    target: float  # nats a response
    horizon: int  # episodes

    def update(self, kl: float, episodes: int) -> None:
        """coef *= 1 + error * episodes / horizon, with error = kl / target - 1 clipped to +-0.2."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * episodes / self.horizon
