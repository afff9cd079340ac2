"""Rollouts: sampling with the training weights, the packed `Rollout`, and its log-prob and value columns.

Rewards and the update are not here; they read and write its columns.
"""
