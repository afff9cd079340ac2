"""Kernels of RLHF as plain functions on tensors.

One folder per operation, each with a `reference.py` in readable torch that is its specification. Nothing here knows
about models, tokenizers, datasets or training stages, and nothing but torch is imported.
"""

from __future__ import annotations

from rlhf_kernels.decode_attention import decode_attention, decode_attention_is_fused
from rlhf_kernels.gae import gae_
from rlhf_kernels.linear_ppo_loss import linear_ppo_loss
from rlhf_kernels.logprobs import LogProbs, PolicyReferenceLogProbs, linear_logprobs, policy_reference_logprobs
from rlhf_kernels.lora_linear import lora_linear
from rlhf_kernels.moments import Moments, merge_moments, moments
from rlhf_kernels.packed_attention import attention_is_fused, packed_attention
from rlhf_kernels.packing import pack, unpack
from rlhf_kernels.ppo_loss import PPOLoss, ppo_loss
from rlhf_kernels.rms_norm import rms_norm
from rlhf_kernels.rotary import rotary
from rlhf_kernels.sample import Sampled, sample, sample_is_fused
from rlhf_kernels.shaping import shape_rewards_
from rlhf_kernels.swiglu import swiglu
from rlhf_kernels.whiten import whiten_

__all__ = [
    "LogProbs",
    "Moments",
    "PPOLoss",
    "PolicyReferenceLogProbs",
    "Sampled",
    "attention_is_fused",
    "decode_attention",
    "decode_attention_is_fused",
    "gae_",
    "linear_logprobs",
    "linear_ppo_loss",
    "lora_linear",
    "merge_moments",
    "moments",
    "pack",
    "packed_attention",
    "policy_reference_logprobs",
    "ppo_loss",
    "rms_norm",
    "rotary",
    "sample",
    "sample_is_fused",
    "shape_rewards_",
    "swiglu",
    "unpack",
    "whiten_",
]
