"""Where the time and the memory of a run go.

Here: what listens to the marks of `rlhf_fast.runtime.phases`, and pages of what it found. Not here: the marks, which
stages set wherever they like.
"""

from rlhf_fast.profiling.memory_profile import memory

__all__ = ["memory"]
