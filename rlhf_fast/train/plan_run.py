"""`rlhf-fast plan`: what a PPO run would take of memory and time, whether it fits, and what would help.

run_plan(config)                the verb: prints the plan; its result's `status` is the exit status
plan_first(config, prompts)     of `ppo --auto`: the same run with memory settings that fit
predict_beside(config, prompts) of `ppo --memory_profile`: what was predicted

Within a run the last two plan in a process of their own: a plan draws random numbers, and what it leaves in memory
would be measured with the run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.table import Table

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.load import load_tokenizer
from rlhf_fast.profiling.memory_table import GIB, MemoryTable, gib
from rlhf_fast.profiling.rates import Rates
from rlhf_fast.runtime.config import default_of, field_names
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, write_text
from rlhf_fast.runtime.launch import LAUNCHED
from rlhf_fast.runtime.shown import notices, show_notices
from rlhf_fast.train.config import PlanConfig, PPORunConfig
from rlhf_fast.train.plan import (
    CARDS,
    Machine,
    Workload,
    card,
    least_seconds,
    predict,
    read_workload,
    this_machine,
)
from rlhf_fast.train.plan_solve import SOLVED, choose, fits, helps, largest, table_of_cards, with_values

WIDE = 150  # characters, where the output is a file
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)", re.IGNORECASE)
_UNITS = {"gb": 10**9, "gib": GIB, "mb": 10**6, "mib": 2**20}


@dataclass(frozen=True)
class PlanResult:
    """What was planned; prints as the sentence that it comes to."""

    table: MemoryTable | None
    machine: Machine | None
    said: str
    status: int

    def __str__(self) -> str:
        return self.said


def run_plan(config: PlanConfig) -> PlanResult:
    """Print the plan. Raises `UsageError` for what cannot be read or planned."""
    refuse_many("plan")
    show_notices()
    run, console = run_config(config), Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    if config.table:
        console.print(table_of_cards(run))
        return PlanResult(
            None,
            None,
            "sequences at a time, in a micro-batch and decoded together, with activation_checkpointing and half of the "
            "context a response: a larger batch is cut into as many micro-batches as it takes",
            0,
        )
    prompts = None if config.from_config_only or not run.dataset_name else prompts_of(run)
    machine = choose_machine(config, run, inputs_read=prompts is not None)
    length = _prompt_length(config)
    workload = read_workload(run, prompts, length)
    found = predict(run, machine, workload)
    console.print(found.table(f"Memory of PPO on {run.sft_model_path}, {machine.name}"))
    fit = fits(found, machine)
    _show_room(console, run, machine, prompts, length, found)
    _show_time(console, run, machine, workload)
    if config.apply:
        _apply(config, run, choose(run, machine, prompts, length))
    return PlanResult(found, machine, verdict(found, machine, fit), 0 if fit else 3)


def run_config(config: PlanConfig) -> PPORunConfig:
    """The PPO run that is planned."""
    return PPORunConfig(**{name: getattr(config, name) for name in field_names(PPORunConfig)})


def choose_machine(config: PlanConfig, run: PPORunConfig, *, inputs_read: bool) -> Machine:
    """Raises `UsageError` for a size that cannot be read."""
    if config.gpu in CARDS:
        return card(str(config.gpu))
    if config.gpu is not None:
        nearest = min(CARDS, key=lambda size: abs(CARDS[size][1] * 10**9 - read_size("gpu", config.gpu or "")))
        found = card(nearest)
        return Machine(
            f"a card of {config.gpu} at the rates of the {CARDS[nearest][0]}", "cuda",
            read_size("gpu", config.gpu), found.baseline, found.rates,
        )  # fmt: skip
    ram = None if config.ram is None else read_size("ram", config.ram)
    return this_machine(run, ram, inputs_read=inputs_read)


def read_size(name: str, text: str) -> float:
    """Bytes of '16GB' or '15.5 GiB'. Raises `UsageError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UsageError(
            f"{name}={text!r} is no size: expected a number above 0 with its unit, such as 24GB or 22.5GiB."
        )
    return float(found[1]) * _UNITS[found[2].lower()]


def verdict(found: MemoryTable, machine: Machine, fit: bool) -> str:
    """'it fits: ...', in a sentence."""
    peak = found.peak
    between = f"{gib(peak.low)} to {gib(peak.high)} GiB, most likely {gib(peak.expected)}"
    says = "it fits" if fit else "it does not fit"
    has = f"{machine.name} has {gib(machine.bytes)} GiB"
    return f"{says}: the peak is {between}, in the phase {found.peak_phase!r}, and {has}."


def plan_first(config: PPORunConfig, prompts: Prompts) -> PPORunConfig:
    """`config` with memory settings that fit and are fast, which is said. No result depends on them. Raises
    `UsageError` where none fit."""
    machine, values, found = _beside(config, prompts, choosing=True)
    said = ", ".join(f"{name}={value}" for name, value in values.items())
    what = verdict(found, machine, True)
    notices.info("planned: %s. %s", said, what[:1].upper() + what[1:])
    return with_values(config, **values)


def predict_beside(config: PPORunConfig, prompts: Prompts) -> MemoryTable:
    """What is predicted of the run as it is on this machine."""
    return _beside(config, prompts, choosing=False)[2]


def _beside(config: PPORunConfig, prompts: Prompts, *, choosing: bool) -> tuple[Machine, dict[str, Any], MemoryTable]:
    """This machine, the values chosen (choosing; else none) and the table with them, from a process of its own
    (`_answer`). Raises `UsageError` for what it refuses, and if it dies."""
    with torch.random.fork_rng():  # adapters begin as they would without a plan
        machine = this_machine(config)
    asked = {
        "config": {name: getattr(config, name) for name in field_names(PPORunConfig)},
        "machine": asdict(machine), "ids": prompts.ids, "choosing": choosing,
    }  # fmt: skip
    alone = {name: value for name, value in os.environ.items() if name not in (*LAUNCHED, "WORLD_SIZE")}
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder, "asked.json"), Path(folder, "answer.json")
        files[0].write_text(json.dumps(asked), encoding="utf-8")
        command = [sys.executable, "-c", "from rlhf_fast.train.plan_run import _answer; _answer()", *map(str, files)]
        done = subprocess.run(command, env=alone | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True)
        if done.returncode:
            end = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise UsageError(
                f"the process that plans ended with status {done.returncode}: {' '.join(end)}. Start without auto and "
                "memory_profile, and see what `rlhf-fast plan` says."
            )
        answer = json.loads(files[1].read_text(encoding="utf-8"))
    if "refused" in answer:
        raise UsageError(answer["refused"])
    return machine, answer["values"], MemoryTable.from_json(answer["table"])


def _answer() -> None:
    """In the process that plans: read what is asked for from the first file, and write the answer into the second."""
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    config = PPORunConfig(**asked["config"])
    machine = Machine(**asked["machine"] | {"rates": Rates(**asked["machine"]["rates"])})
    prompts = Prompts(asked["ids"], [""] * len(asked["ids"]))
    answer: dict[str, Any]
    try:
        values = choose(config, machine, prompts, 0) if asked["choosing"] else {}
        changed = with_values(config, **values)
        found = predict(changed, machine, read_workload(changed, prompts, 0))
        answer = {"values": values, "table": found.as_json()}
    except UsageError as error:
        answer = {"refused": str(error)}
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


def prompts_of(run: PPORunConfig) -> Prompts:
    """The prompts that a run would read."""
    from rlhf_fast.train.ppo_run import read

    return read(run, load_tokenizer(str(run.sft_model_path), run.chat_template_path))[0]


def _prompt_length(config: PlanConfig) -> int:
    if config.prompt_length is not None:
        return config.prompt_length
    room = config.max_length - config.response_length
    if room < 1:
        raise UsageError(
            f"response_length={config.response_length} leaves no room for a prompt in max_length={config.max_length}. "
            "Raise max_length, or give prompt_length."
        )
    return room


def _show_room(
    console: Console, run: PPORunConfig, machine: Machine, prompts: Prompts | None, length: int, found: MemoryTable
) -> None:
    shown = Table("the largest that fits", "", title="Room, all else as it is")
    for name in SOLVED:
        value = largest(name, run, machine, prompts, length, most=1 << 16)
        shown.add_row(name, "none" if value is None else f"{value:,}" if value < 1 << 16 else f"{value:,} or more")
    console.print(shown)
    changes = Table("what would help", "GiB less", title=f"The peak is in the phase {found.peak_phase!r}")
    for words, saved in helps(run, machine, prompts, length):
        changes.add_row(words, gib(saved))
    console.print(changes)


def _show_time(console: Console, run: PPORunConfig, machine: Machine, workload: Workload) -> None:
    shown = Table("phase", "seconds at least", title="Time of an iteration, by its products alone")
    seconds = least_seconds(run, machine, workload)
    for name, value in seconds.items():
        shown.add_row(name, f"{value:.2g}")
    shown.add_row("all", f"{sum(seconds.values()):.2g}", style="bold")
    console.print(shown)


def _apply(config: PlanConfig, run: PPORunConfig, values: dict[str, Any]) -> None:
    """Write the fields of the run that have another value than their default, and those that were chosen."""
    changed = with_values(run, **values)
    skipped = {"gradient_checkpointing"}
    given = {
        name: getattr(changed, name) for name in field_names(PPORunConfig)
        if name not in skipped and getattr(changed, name) != default_of(PPORunConfig, name)
    }  # fmt: skip
    path = Path(str(config.apply))
    with disk_errors(f"write {str(path)!r}", lambda: ""):
        write_text(path, yaml.safe_dump(given, sort_keys=False))
    notices.info("%s: %s", path, ", ".join(f"{name}={value}" for name, value in values.items()))
