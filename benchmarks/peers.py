"""The same operations of other projects, where they are installed; `run_again` makes an environment that has them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from dataclasses import replace

from benchmarks import environments
from rlhf_fast.bench import plain
from rlhf_fast.bench.cases import Projection, no_grad
from rlhf_fast.bench.timing import Case, Variant

FOLDER = environments.ROOT / ".venv-peers"
PACKAGES = ("trl==1.16.0", "liger-kernel==0.8.5", "matplotlib", "pytest", "numpy")
TRL_CHUNK = 32768  # vocabulary entries, as its trainers take
NOTES = {"Liger": "GRPO's loss in place of PPO's, the weight's gradient included: it has no other"}


def run_again(module: str, arguments: list[str]) -> int:
    """Run `python -m module` once more in an environment that has the peers, which is made where it is missing."""
    python = environments.make(FOLDER, PACKAGES)
    return subprocess.run(
        [str(python), "-m", module, *arguments], env=os.environ | {"PYTHONPATH": environments.PATH}
    ).returncode


def beside(case: Case) -> Case:
    """The case with the variants of those that are installed."""
    p = case.inputs
    if not isinstance(p, Projection):
        return case
    variants = no_grad(forward(p)) if case.op == "linear_logprobs" else update(p)
    return replace(case, variants=case.variants | variants, notes=case.notes | NOTES)


def forward(p: Projection) -> dict[str, Variant]:
    """Log-probs of the labels."""
    if importlib.util.find_spec("trl") is None:
        return {}
    return {"TRL chunked": lambda: _trl_logprobs(p, p.hidden)}


def update(p: Projection) -> dict[str, Variant]:
    """The loss from hidden states, forward and backward."""
    variants: dict[str, Variant] = {}
    if importlib.util.find_spec("trl") is not None:
        variants["TRL chunked"] = p.update(lambda x: plain.ppo(_trl_logprobs(p, x), *p.columns))
    if importlib.util.find_spec("liger_kernel") is not None:
        variants["Liger"] = _liger(p)
    return variants


def _trl_logprobs(p: Projection, hidden):
    from trl.kernels import ChunkedLogProbFunction

    return ChunkedLogProbFunction.apply(hidden, p.weight, None, p.labels, 1.0, TRL_CHUNK, None, 1.0, ())[0]


def _liger(p: Projection) -> Variant:
    """Four sequences of N / 4 tokens, one a chunk; its loss differentiates the weight whether asked or not."""
    import torch
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
    n = p.labels.shape[0] // 4
    mask, advantages = torch.ones(4, n), torch.randn(4)

    def run(hidden):
        rows = hidden.view(4, n, -1)
        old = p.columns[0].view(4, n)
        return loss(rows, p.weight, p.labels.view(4, n), mask, advantages, old_per_token_logps=old)[0]

    return p.update(run)
