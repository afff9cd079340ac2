"""What every stage stands on: configs and their parsing, devices and dtypes, optimisers, metrics and progress, errors.

Nothing here knows what a policy, a reward or a rollout is.
"""
