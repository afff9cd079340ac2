"""`Bench`: where a section runs, how it measures, and whom it tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

GIB = 2**30


@dataclass
class Bench:
    """Where a section runs, and whom it tells. `dry`: at toy size."""

    device: torch.device
    dry: bool
    report: Callable[[dict[str, Any]], None]

    def tell(self, what: str, **numbers: Any) -> None:
        self.report({"what": what} | numbers)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object], rounds: int = 3) -> float:
        """The median over `rounds` calls, after one that is not counted."""
        times = []
        for _ in range(1 + (1 if self.dry else rounds)):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return median(times[1:])

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """GiB that tensors took at most since `reset_peak`."""
        return torch.cuda.max_memory_allocated() / GIB if self.device.type == "cuda" else 0.0

    def sizes(self, *names: str) -> tuple[str, ...]:
        return ("toy",) if self.dry else names

    def profile(self, what: str, run: Callable[[], object], steps: int = 1) -> None:
        """What takes the time on the device and on the host in `steps` steps of `run`."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.device.type == "cuda" else [])]
        run()
        self.wait()
        with profile(activities=activities) as found:
            run()
            self.wait()
        events = found.key_averages()
        on_host = torch.autograd.DeviceType.CPU
        device = {e.key: (e.self_device_time_total / 1e3 / steps, e.count / steps)
                  for e in events if e.device_type != on_host}  # fmt: skip
        host = {e.key: (e.self_cpu_time_total / 1e3 / steps, e.count / steps)
                for e in events if e.device_type == on_host}  # fmt: skip
        self.tell(
            what, device_ms_a_step=sum(ms for ms, _ in device.values()),
            launches_a_step=sum(count for key, (_, count) in host.items() if key in LAUNCHES),
            top=_largest("device", device, 14) + _largest("host", host, 10),
        )  # fmt: skip


LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def _largest(where: str, found: dict[str, tuple[float, float]], count: int) -> list[str]:
    """The `count` events of the most milliseconds, as lines."""
    order = sorted(found, key=lambda key: -found[key][0])[:count]
    return [f"{where:<6} {found[key][0]:9.3f} ms {found[key][1]:8.1f}x {key[:100]}" for key in order]
