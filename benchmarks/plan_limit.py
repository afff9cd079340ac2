"""Whether the largest batch that a plan allows really runs under a hard limit, and one that needs 15 % more does not.

    python -m benchmarks.plan_limit --tokenizer MODEL_FOLDER [--gigabytes 1.2] [--only llama-lora-64 ...]

Each run is a process of its own whose data segment may not grow beyond the limit (RLIMIT_DATA). The limit is on what
the process asks for, not on what is resident: it is set as far from the plan's as the two lie apart in the process
before the run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.plan_error import Case, cases, write_inputs

CHOSEN = ("llama-lora-64", "llama-full-64", "qwen2-lora-recompute-64", "gpt2-lora-64", "gpt2-full-64")
MORE = 1.15
PLAN = """
import json, sys
from dataclasses import replace
from rlhf_fast.train.plan import predict, read_workload, this_machine
from rlhf_fast.train.plan_run import prompts_of
from rlhf_fast.train.plan_solve import largest, with_values
from rlhf_fast.train.config import PPORunConfig
config = PPORunConfig(**json.load(open(sys.argv[2])))
prompts = prompts_of(config)
machine = this_machine(config, float(sys.argv[3]))
larger = replace(machine, bytes=float(sys.argv[4]) * machine.bytes)
name = "per_device_train_batch_size"
fitting, more = (largest(name, config, one, prompts, 0, most=4096) for one in (machine, larger))
json.dump([fitting, more + 1], open(sys.argv[1], "w"))
"""
RUN = """
import json, resource, sys
from pathlib import Path
from rlhf_fast import PPORunConfig, run_ppo
import rlhf_fast.train.ppo_run
lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if "kB" in line]
status = {line[0]: line[1] for line in lines}
apart = 1024 * (int(status["VmData:"]) - int(status["VmRSS:"]))
limit = int(float(sys.argv[2]) + apart)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    run_ppo(PPORunConfig(**json.loads(sys.argv[1])))
except Exception as error:
    print(type(error).__name__, str(error)[:300], file=sys.stderr)
    sys.exit(3 if "out of memory" in str(error) or isinstance(error, MemoryError) else 4)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="A model folder whose tokenizer and vocabulary are used.")
    parser.add_argument("--gigabytes", type=float, default=1.2, help="The limit.")
    parser.add_argument("--only", nargs="*", default=CHOSEN, help="Names of cases of benchmarks.plan_error.")
    given = parser.parse_args()
    for case in cases():
        if case.name in given.only:
            with tempfile.TemporaryDirectory() as folder:
                print(case.name, try_both(case, given.tokenizer, Path(folder), given.gigabytes * 1e9), flush=True)


def try_both(case: Case, tokenizer: str, folder: Path, limit: float) -> str:
    """What became of the largest batch, and of the one that needs 15 % more."""
    config = write_inputs(replace(case, tokens=1 << 20), tokenizer, folder)  # a batch is one micro-batch
    (folder / "config.json").write_text(json.dumps(config))
    files = [str(folder / "batches.json"), str(folder / "config.json")]
    subprocess.run([sys.executable, "-c", PLAN, *files, str(limit), str(MORE)], check=True)
    fitting, more = json.loads((folder / "batches.json").read_text())
    ends = {0: "runs", 3: "is out of memory"}
    said = []
    for batch in (fitting, more):
        sizes = {"per_device_train_batch_size": batch, "total_episodes": 2 * batch, "max_rollout_batch": 32}
        given = json.dumps(config | sizes | {"output_dir": str(folder / f"out{batch}")})
        done = subprocess.run([sys.executable, "-c", RUN, given, str(limit)], stdout=subprocess.DEVNULL)
        said.append(f"a batch of {batch} {ends.get(done.returncode, f'fails with status {done.returncode}')}")
    return ", ".join(said)


if __name__ == "__main__":
    main()
