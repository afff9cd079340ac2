"""The two sides of `benchmarks.rollout`: what each runs, and the time of the parts of ours."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.engine import Engine
from rlhf_fast.rollout.sampling import Sampling

CALLED = {"prefill": "prefill", "decode": "decode", "head and sampling": "choose"}  # part -> what the engine calls
PREPARATION, REST = "preparation", "Python and the rest"


@dataclass(frozen=True)
class Shape:
    """Responses decoded together, tokens of each prompt, and tokens of each response."""

    batch: int
    prompt: int
    new: int

    @property
    def tokens(self) -> int:
        return self.batch * self.new


@dataclass
class Ours:
    """A side that remembers the parts of its rollouts, in seconds."""

    policy: Policy
    prompts: list[list[int]]
    sampling: Sampling

    def __post_init__(self) -> None:
        self.parts: list[dict[str, float]] = []
        self.responses: list[list[int]] = []

    @torch.no_grad()
    def __call__(self) -> None:
        parts = dict.fromkeys([PREPARATION, *CALLED], 0.0)
        start = time.perf_counter()
        batch, tokens = len(self.prompts), sum(map(len, self.prompts))
        engine = Engine(self.policy, self.prompts, self.sampling, list(range(batch)), batch, tokens)
        parts[PREPARATION] = time.perf_counter() - start
        for part, name in CALLED.items():
            setattr(engine, name, timed(getattr(engine, name), parts, part))
        engine.run()
        self.parts.append(parts | {REST: time.perf_counter() - start - sum(parts.values())})
        self.responses = [response.tokens for response in engine.responses]


@dataclass
class Theirs:
    """The other side: `generate` of transformers with its own attention."""

    model: Any  # a causal language model of transformers
    prompts: list[list[int]]
    sampling: GenerationConfig

    def __post_init__(self) -> None:
        self.model.generation_config = GenerationConfig()  # its own would fill what `sampling` leaves out, as an EOS
        self.responses: list[list[int]] = []

    def __call__(self) -> None:
        tokens = torch.tensor(self.prompts)
        out = self.model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=self.sampling)
        self.responses = out[:, tokens.shape[1] :].tolist()


def generation_config(new: int, temperature: float) -> GenerationConfig:
    """As ours: no stop token, and sampling from the whole distribution."""
    if temperature == 0:
        return GenerationConfig(max_new_tokens=new, pad_token_id=0, do_sample=False)
    whole = {"top_k": 0, "top_p": 1.0}
    return GenerationConfig(max_new_tokens=new, pad_token_id=0, do_sample=True, temperature=temperature, **whole)


def timed(call: Callable, parts: dict[str, float], part: str) -> Callable:
    """`call`, adding its seconds to `parts[part]`."""

    def run(*args):
        start = time.perf_counter()
        result = call(*args)
        parts[part] += time.perf_counter() - start
        return result

    return run
