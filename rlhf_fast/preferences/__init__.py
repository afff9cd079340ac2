"""The reward model: comparisons as token ids, the ranking loss, training an adapter with a head, and what it is worth.

Reading comparison files lives in `data`, using a reward model as a source of scores in `rewards`.
"""
