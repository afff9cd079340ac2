"""The same PPO job in TRL 1.12 and in rlhf_fast: `python -m benchmarks.vs_trl`."""
