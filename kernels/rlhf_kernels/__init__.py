"""Kernels of RLHF as plain functions on tensors.

A file or a folder per operation: the public function, its specification in readable torch (`_reference`, or the
folder's `reference.py`), the C++ backend's host code, and its entry in the table of `op`; beside it, with the ending
`_triton` or in the folder's `triton.py`, the Triton kernels and their launches, and with `_cuda` or in `cuda.py` those
of `csrc/cuda`. Nothing here knows about models, tokenizers, datasets or training stages, and nothing but torch is
imported.
"""

from __future__ import annotations

from rlhf_kernels.decode_attention import decode_attention
from rlhf_kernels.decoder import Decoder, DecoderLayer, DecoderLinear
from rlhf_kernels.gae import gae_
from rlhf_kernels.logprobs import IGNORED, LogProbs, PolicyReferenceLogProbs, linear_logprobs, policy_reference_logprobs
from rlhf_kernels.lora_linear import lora_linear
from rlhf_kernels.packed_attention import packed_attention
from rlhf_kernels.packing import pack, unpack
from rlhf_kernels.ppo_loss import PPOLoss, linear_ppo_loss, ppo_loss
from rlhf_kernels.rms_norm import rms_norm
from rlhf_kernels.rotary import rotary
from rlhf_kernels.sample import Sampled, Sampler, sample
from rlhf_kernels.shaping import shape_rewards_
from rlhf_kernels.swiglu import swiglu
from rlhf_kernels.whiten import Moments, merge_moments, moments, whiten_

__all__ = [
    "IGNORED",
    "Decoder",
    "DecoderLayer",
    "DecoderLinear",
    "LogProbs",
    "Moments",
    "PPOLoss",
    "PolicyReferenceLogProbs",
    "Sampled",
    "Sampler",
    "decode_attention",
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
    "shape_rewards_",
    "swiglu",
    "unpack",
    "whiten_",
]
