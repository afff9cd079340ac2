"""Where the time of a run goes, by phase, beside the least that its arithmetic can take.

Here: what listens to the marks of `rlhf_fast.runtime.phases`. Not here: the marks, which stages set wherever they like.
"""
