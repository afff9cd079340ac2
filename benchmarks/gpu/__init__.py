"""Everything that a GPU can show, in one call of some five minutes: `python -m benchmarks.gpu`.

__main__   the command: sections in order, each in a process of its own with a deadline; one JSON file and a table
sections   what is run and measured
bench      how a section measures, and whom it tells
ppo        a PPO run over a random model, and its phases
models     random models of the shapes that are measured, made on the device
"""
