"""Measurements: each module is a command (`python -m benchmarks.NAME`) that prints what docs/results.md holds.

Nothing here is imported by the packages, and nothing is a test of correctness.
"""
