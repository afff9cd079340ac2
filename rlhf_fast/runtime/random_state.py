"""The random generators of the process: those of Python, NumPy and torch.

Sampling and the order of the data do not read them (each has a seed of its own); a reward function of the user may.
"""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch

from rlhf_fast.runtime.state import State


class RandomState:
    """The generators that belong to no object, as a part of a run: of GPUs that of the process's own, as many as there
    may be where it is saved or read."""

    def state(self) -> State:
        generator: dict[str, Any] = numpy.random.get_state(legacy=False)  # type: ignore[assignment]
        words = generator["state"].pop("key")
        tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(words.astype("int64"))}
        if torch.cuda.is_available():
            tensors["cuda"] = torch.cuda.get_rng_state()
        return State(tensors, {"python": random.getstate(), "numpy": generator})

    def load_state(self, state: State) -> None:
        version, words, gauss = state.facts["python"]
        random.setstate((version, tuple(words), gauss))
        generator = state.facts["numpy"]
        key = state.tensors["numpy"].numpy().astype("uint32")
        numpy.random.set_state(generator | {"state": generator["state"] | {"key": key}})
        torch.set_rng_state(state.tensors["torch"])
        if torch.cuda.is_available() and "cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["cuda"])
