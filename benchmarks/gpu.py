"""Everything that needs a GPU, in one call: the tests marked `gpu`, then the kernels' benchmarks on the device.

    python -m benchmarks.gpu --csv gpu.csv

Exits with an error where there is no CUDA device, or where a test fails.
"""

from __future__ import annotations

import subprocess
import sys

import torch


def main() -> int:
    if not torch.cuda.is_available():
        print("No CUDA device: torch.cuda.is_available() is False. Run this where nvidia-smi lists one.")
        return 1
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs"])
    if tests.returncode:
        return tests.returncode
    return subprocess.run([sys.executable, "-m", "benchmarks.run", "--device", "cuda", *sys.argv[1:]]).returncode


if __name__ == "__main__":
    sys.exit(main())
