"""The shared base: one frozen copy of the weights, named LoRA adapters on it, scalar heads, packed attention.

What lives here knows tensors, adapters and transformers models, not what a rollout, a reward or a stage is.
"""
