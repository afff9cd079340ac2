"""PPO's loss straight from hidden states: `linear_logprobs` and `ppo_loss` in one call.

With a frozen output embedding the gradient of the hidden states costs two products with it, not four: the gradient of a
row's log-prob is prepared while its logits are in cache, and the loss only scales it.
"""

from __future__ import annotations

from torch import Tensor

from rlhf_kernels.logprobs import IGNORED, linear_logprobs
from rlhf_kernels.ppo_loss import PPOLoss, ppo_loss


def linear_ppo_loss(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    labels: Tensor,  # (N,)
    old_logprobs: Tensor,  # (N,)
    advantages: Tensor,  # (N,)
    values: Tensor,  # (N,)
    old_values: Tensor,  # (N,)
    returns: Tensor,  # (N,)
    *,
    bias: Tensor | None = None,  # (V,)
    temperature: float = 1.0,
    softcap: float | None = None,
    value_mask: Tensor | None = None,  # (N,)
    cliprange: float,
    cliprange_value: float | None,
    vf_coef: float,
    entropy: bool = False,
    entropy_coef: float = 0.0,
    dual_clip: float | None = None,
    log_ratio_clamp: float | None = None,
    denominator: float | Tensor | None = None,
    value_denominator: float | Tensor | None = None,
    loss_weight: Tensor | None = None,  # (N,)
    backend: str | None = None,
) -> PPOLoss:
    """`ppo_loss` of the log-probs of `labels` under the hidden states, over the rows whose label is not -100.

    `entropy` asks for the mean entropy among the results; it has a part in the loss, and costs a third product in
    the gradient, only where `entropy_coef` is not 0. `loss_weight` is the `weight` of `ppo_loss`. The loss is once
    differentiable in hidden, values, weight and bias. Everything else, errors and backends included, is as
    `linear_logprobs` and `ppo_loss` say.
    """
    scored = linear_logprobs(
        hidden, weight, labels, bias=bias, temperature=temperature, softcap=softcap,
        entropy=entropy or entropy_coef != 0, entropy_gradient=entropy_coef != 0, backend=backend,
    )  # fmt: skip
    return ppo_loss(
        scored.logprobs, old_logprobs, advantages, values, old_values, returns,
        mask=labels != IGNORED, value_mask=value_mask, cliprange=cliprange, cliprange_value=cliprange_value,
        vf_coef=vf_coef, entropy=scored.entropy, entropy_coef=entropy_coef, dual_clip=dual_clip,
        log_ratio_clamp=log_ratio_clamp, denominator=denominator, value_denominator=value_denominator,
        weight=loss_weight, backend=backend,
    )  # fmt: skip
