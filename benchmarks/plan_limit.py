"""Whether the largest batch that a plan allows really runs under a hard limit, and one that needs 15 % more does not.

    python -m benchmarks.plan_limit --tokenizer MODEL_FOLDER [--limit cgroup|data] [--only llama-lora-64 ...]

Each run is a process of its own. A batch is one micro-batch, so that memory grows with it; the larger batch is the
first whose expected peak is 15 % above the limit.

cgroup   what is resident may not grow beyond the limit: the kernel kills the process. Linux, where groups can be made
data     what the process asks for may not (RLIMIT_DATA), touched or not: torch raises

Neither counts as a plan does: a group does not count libraries that other processes have mapped, and the data segment
counts what was never touched. So the limit is set as far from the plan's as the two lie apart before the run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.plan_error import Case, cases, write_inputs

LIMITS = {
    "llama-lora-64": 1.0, "llama-full-64": 1.5, "qwen2-lora-recompute-64": 1.0, "gpt2-lora-64": 1.0,
    "gpt2-full-64": 1.5,
}  # fmt: skip
"""Cases of `benchmarks.plan_error`, with the GB that each may take."""
MORE = 1.15
PLAN = """
import json, sys
from rlhf_fast.train.plan import predict, read_workload, this_machine
from rlhf_fast.train.plan_run import prompts_of
from rlhf_fast.train.plan_solve import largest, with_values
from rlhf_fast.train.config import PPORunConfig
config = PPORunConfig(**json.load(open(sys.argv[2])))
prompts = prompts_of(config)
machine = this_machine(config, float(sys.argv[3]))
name = "per_device_train_batch_size"

def peak(batch):
    changed = with_values(config, **{name: batch})
    return predict(changed, machine, read_workload(changed, prompts, 0)).peak.expected

fitting = largest(name, config, machine, prompts, 0, most=4096)
if fitting is None:
    sys.exit("not one sequence fits: raise the limit")
more = fitting + 1
while peak(more) < float(sys.argv[4]) * machine.bytes:
    more += 1
json.dump([[batch, peak(batch)] for batch in (fitting, more)], open(sys.argv[1], "w"))
"""
RUN = "import sys; from benchmarks.plan_limit import run_limited; run_limited(*sys.argv[1:])"
OUT_OF_MEMORY = 3
GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Group:
    """A memory cgroup: its folder, and the files that hold its limit and that of memory with swap."""

    folder: Path
    limit: str
    with_swap: str
    no_swap: str  # what is written there, where the limit is not

    def set_limit(self, size: int) -> None:
        (self.folder / self.limit).write_text(str(size))
        if (self.folder / self.with_swap).exists():  # the kernel may be built without
            (self.folder / self.with_swap).write_text(self.no_swap or str(size))


def group_named(name: str) -> Group:
    """Of version 1, whose memory has a hierarchy of its own, or of version 2."""
    if (GROUPS / "memory").is_dir():
        return Group(GROUPS / "memory" / name, "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "")
    return Group(GROUPS / name, "memory.max", "memory.swap.max", "0")


@contextmanager
def new_group() -> Iterator[Group]:
    """Made and taken away again. Raises `OSError` where it may not be made."""
    group = group_named(f"plan_limit_{os.getpid()}")
    group.folder.mkdir()
    try:
        (group.folder / group.limit).read_text()  # absent where the group above gives it no control of memory
        yield group
    finally:
        for _ in range(50):
            try:
                group.folder.rmdir()
                break
            except OSError:  # a process that was killed is still going
                time.sleep(0.1)
        else:
            print(f"the group {group.folder} is still in use and stays: remove it with rmdir", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="A model folder whose tokenizer and vocabulary are used.")
    parser.add_argument("--limit", choices=["cgroup", "data"], help="Default: cgroup, where one can be made.")
    parser.add_argument("--only", nargs="*", choices=LIMITS, default=list(LIMITS), help="Cases of plan_error.")
    given = parser.parse_args()
    kind = given.limit or ("cgroup" if can_make_groups() else "data")
    print(f"Limited by {kind}.\n\n| run | limit, GB | batch | expected, GB | what became of it |")
    print("| --- | ---: | ---: | ---: | --- |", flush=True)
    for case in cases():
        if case.name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                for row in try_both(case, given.tokenizer, Path(folder), kind):
                    print(row, flush=True)


def can_make_groups() -> bool:
    try:
        with new_group():
            return True
    except OSError:
        return False


def try_both(case: Case, tokenizer: str, folder: Path, kind: str) -> Iterator[str]:
    """What became of the largest batch, and of the one that needs 15 % more."""
    limit = LIMITS[case.name] * 1e9
    config = write_inputs(replace(case, tokens=1 << 20), tokenizer, folder) | {
        "max_rollout_batch": 32, "auto_find_batch_size": False,  # else a run would go on with less
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    files = [str(folder / "batches.json"), str(folder / "config.json")]
    subprocess.run([sys.executable, "-c", PLAN, *files, str(limit), str(MORE)], check=True, stdout=subprocess.DEVNULL)
    for batch, expected in json.loads((folder / "batches.json").read_text()):
        file = folder / f"run{batch}.json"
        sizes = {"per_device_train_batch_size": batch, "total_episodes": 2 * batch}
        file.write_text(json.dumps(config | sizes | {"output_dir": str(folder / f"out{batch}")}))
        status = run_under(limit, kind, file)
        ends = {0: "runs", OUT_OF_MEMORY: "is out of memory", -9: "is killed by the kernel: out of memory"}
        ended = ends.get(status, f"FAILS with status {status}")
        yield f"| {case.name} | {limit / 1e9:.2f} | {batch} | {expected / 1e9:.2f} | {ended} |"


def run_under(limit: float, kind: str, file: Path) -> int:
    """The exit status of the run of a config; -9 where the kernel killed it."""
    command = [sys.executable, "-c", RUN, str(file), str(int(limit))]
    if kind == "data":
        return subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    with new_group() as group:
        processes = group.folder / "cgroup.procs"

        def enter() -> None:  # before Python and the libraries have taken anything
            processes.write_text(str(os.getpid()))

        return subprocess.run([*command, group.folder.name], stdout=subprocess.DEVNULL, preexec_fn=enter).returncode


def run_limited(file: str, limit: str, group: str = "") -> None:
    """In the process that runs: load the libraries, set the limit, and run. group: of which it is part, if any."""
    import rlhf_fast.train.ppo_run  # noqa: F401
    from rlhf_fast import PPORunConfig, run_ppo
    from rlhf_fast.runtime.memory import is_out_of_memory

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held = {name: 1024 * int(value.split()[0]) for name, value in status.items() if value.endswith("kB")}
    if group:
        group_named(group).set_limit(int(limit) - held["RssFile"] - held["RssShmem"])
    else:
        size = int(limit) + held["VmData"] - held["VmRSS"]
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    try:
        run_ppo(PPORunConfig(**json.loads(Path(file).read_text())))
    except Exception as error:
        print(type(error).__name__, str(error)[:300], file=sys.stderr)
        told = "out of memory" in str(error) or is_out_of_memory(error)
        sys.exit(OUT_OF_MEMORY if told else 4)


if __name__ == "__main__":
    main()
