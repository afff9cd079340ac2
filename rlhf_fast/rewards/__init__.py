"""Where a response's score comes from: a reward model, a Python function, a rule, or several weighted together.

Each source only maps a `RewardBatch` to one number a response. KL penalties and shaping are not here.
"""
