"""The stages that train a language model: SFT, and PPO. The reward model is trained in `rlhf_fast.preferences`.

`ppo.py` is the algorithm on one page; what is not the algorithm has a file of its own and is called by name.
"""
