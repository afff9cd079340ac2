"""Everything that a GPU can show, in one call of some five minutes: `python -m benchmarks.gpu`.

__main__   the command: sections in order, each in a process of its own with a deadline; one JSON file and a table
sections   what is run and measured
bench      how a section measures, and whom it tells
ppo        the phases of a PPO run

The random models of the shapes that are measured are in `rlhf_fast.bench.models`.
"""
