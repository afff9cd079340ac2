"""`rlhf-fast bench`: what the kernels and the engine do on the machine at hand, as a report to share.

timing     variants of one computation, interleaved, beside what the machine can do
cases      the kernels' operations and shapes; `plain` has them as people write them in torch
models     random models and a PPO run over one, without files
machine    what the numbers were measured on, without names of the host, its users or paths
run        the verb: measure, print, write bench.json and bench.html

The comparisons of `benchmarks/`, which need other packages or hours, import these.
"""
