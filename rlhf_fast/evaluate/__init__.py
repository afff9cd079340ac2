"""Does the trained policy answer better? Two policies compared on held-out prompts, and the HTML report of a run.

Comparing, its statistics and the page live here; training and reward-model fitting do not. Charts are inline SVG.
"""
