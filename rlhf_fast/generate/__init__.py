"""Responses of a trained model to prompts, as a file. How tokens are sampled is in `rlhf_fast.rollout`."""
