"""What a script written for TRL's PPO does when its import is changed: `python -m benchmarks.drop_in`.

`scripts` are written as TRL's examples and its users write them, importing TRL. Each row of the table is one of them
with a set of options; it runs as it is in TRL's environment, and here with its import changed.
"""
