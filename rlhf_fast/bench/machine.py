"""What was measured on: the machine and the versions, and nothing that says whose it is."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from rlhf_fast import __version__
from rlhf_kernels.extension import LEVEL

PACKAGES = ("torch", "transformers", "peft", "triton")
CPUINFO = Path("/proc/cpuinfo")


def machine(threads: int, device: str) -> str:
    """In a line: processor or GPU, threads, versions and load."""
    facts = machine_facts(threads)
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    load = " ".join(f"{x:.1f}" for x in facts["load"])
    versions = f"torch {torch.__version__}, Python {facts['versions']['python']}"
    return f"{gpu}{facts['processor']}, {threads} threads, {versions}, load {load}"


def machine_facts(threads: int) -> dict[str, Any]:
    """For a report: no host name, no user, no path."""
    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=False),
        "threads": threads,
        "instructions": LEVEL or "none: the C++ kernels are not built",
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [
            {"name": torch.cuda.get_device_name(i), "memory_gib": round(_card_bytes(i) / 2**30, 1)} for i in cards
        ],
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(x, 2) for x in os.getloadavg()],
        "versions": {"rlhf_fast": __version__, "python": platform.python_version(), **_versions()},
    }


def _processor() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _card_bytes(index: int) -> int:
    return torch.cuda.get_device_properties(index).total_memory


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
