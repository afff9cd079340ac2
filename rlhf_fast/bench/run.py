"""`rlhf-fast bench`: the kernels beside what people write in their place, and a PPO run beside its floor.

Everything is made up: random weights, prompts of random tokens. The report says what the machine is, and not whose.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from rlhf_fast.bench.cases import COMPILED, OPERATIONS, cases
from rlhf_fast.bench.config import BenchConfig
from rlhf_fast.bench.machine import machine, machine_facts
from rlhf_fast.bench.models import build_ppo, shared_model
from rlhf_fast.bench.timing import Row, measure
from rlhf_fast.profiling.memory_page import COLOURS, DRAWN, words
from rlhf_fast.profiling.memory_profile import WIDE, MemoryProfile
from rlhf_fast.profiling.memory_table import BASE, SLACK, MemoryTable
from rlhf_fast.profiling.profile import Profile
from rlhf_fast.profiling.rates import measure_rates
from rlhf_fast.report.page import Report
from rlhf_fast.report.sections import table as topics
from rlhf_fast.report.stacked import legend, stacked_bars
from rlhf_fast.runtime import phases
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.files import disk_errors, write_text
from rlhf_fast.runtime.output import refuse_unwritable

BENCH_FILE, BENCH_PAGE = "bench.json", "bench.html"
QUICK_SHAPES = {3: (64, 64, 512), 2: (4, 32)}  # by the number of sizes that an operation has
ENGINE = {"rows": 16, "prompt": 64, "new": 64}
QUICK_ENGINE = {"rows": 4, "prompt": 8, "new": 8}


def run_bench(config: BenchConfig) -> Path:
    """Measure, print tables, and write bench.json and bench.html into `output_dir`. Returns the path of the page."""
    refuse_many("bench")
    refuse_unwritable("output_dir", config.output_dir)
    device, output = choose_device(config.use_cpu), Path(config.output_dir)
    console = Console(stderr=True)
    console.width = console.width if console.is_terminal else WIDE
    console.print(machine(torch.get_num_threads(), device.type))
    rows = []
    for op in OPERATIONS:
        found = measure_kernels(op, config, device.type)
        console.print(kernel_table(found))
        rows += found
    engine = measure_engine(config, device)
    console.print(engine_table(engine))
    facts = {
        "machine": machine_facts(torch.get_num_threads()), "device": device.type, "quick": config.quick,
        "kernels": [asdict(row) for row in rows], "engine": engine,
    }  # fmt: skip
    with disk_errors(f"write the report to {str(output)!r}"):
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / BENCH_FILE, json.dumps(facts, indent=2) + "\n")
        return write_bench_page(output, facts, rows)


# -- the kernels


def measure_kernels(op: str, config: BenchConfig, device: str) -> list[Row]:
    """Rows of every case of an operation, on small shapes where `quick`."""
    make, shapes = OPERATIONS[op]
    found = [make(*QUICK_SHAPES[len(shapes[0])], device)] if config.quick else cases(op, device)
    for case in found:
        if not config.torch_compile:
            case.variants.pop(COMPILED, None)
    return [row for case in found for row in measure(case, config.rounds, device)]


def kernel_table(rows: Sequence[Row]) -> Table:
    """The rows of one operation."""
    shown = Table("shape", "variant", "time / ours", "time / bare products", "% of limit", "note", title=rows[0].op)
    for row in rows:
        floor = "" if row.times_floor is None else f"{row.times_floor:.2f}"
        numbers = f"{row.times_ours:.2f}", floor, f"{row.percent_of_limit:.1f}"
        shown.add_row(row.shape, row.variant, *numbers, row.note)
    return shown


# -- the engine


def measure_engine(config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """A PPO run on a small random model: the memory of its first iteration, and medians of the time of the others."""
    name, sizes = ("toy", QUICK_ENGINE) if config.quick else ("small", ENGINE)
    dtype = choose_dtype("auto", device)
    with tempfile.TemporaryDirectory() as folder:
        with MemoryProfile(device) as memory:
            with phases.phase("load"):
                shared = shared_model(name, device, "policy", "critic", "reward", dtype=dtype)
                ppo = build_ppo(shared, folder, **sizes)
            memory.attach(ppo)
            ppo.step()
        found, times, runs = measure_rates(dtype, device), [], []
        for _ in range(config.iterations):
            profile, begin = Profile(found, device), time.perf_counter()
            with phases.listen(profile):
                ppo.step()
            times.append(time.perf_counter() - begin)
            runs.append(profile.totals)
    weights = (p for name, p in shared.base.named_parameters() if "lora" not in name)
    seconds, tokens = statistics.median(times), sizes["rows"] * sizes["new"]
    spent = {phase: statistics.median(run[phase].seconds for run in runs) for phase in runs[0]}
    return {
        "model": name, "parameters": sum(p.numel() for p in weights), "dtype": str(dtype)[6:], **sizes,
        "seconds": seconds, "sampled_tokens_per_second": tokens / spent["rollout"],
        "flops_per_second": found.flops, "bytes_per_second": found.bytes,
        "phases": {phase: {"seconds": spent[phase], "floor": runs[0][phase].floor} for phase in spent},
        "memory": memory.table().as_json(),
    }  # fmt: skip


def engine_table(engine: dict[str, Any]) -> Table:
    shown = Table("phase", "seconds", "floor, seconds", "floor / time", title=f"An iteration: {engine_words(engine)}")
    for name, phase in engine["phases"].items():
        share = f"{phase['floor'] / phase['seconds']:.0%}"
        shown.add_row(name, f"{phase['seconds']:.3g}", f"{phase['floor']:.3g}", share)
    return shown


def engine_words(engine: dict[str, Any]) -> str:
    return (
        f"{engine['rows']} responses of at most {engine['new']} tokens to prompts of {engine['prompt']}, a random "
        f"Llama of {engine['parameters'] / 1e6:.1f} million parameters in {engine['dtype']}"
    )


# -- the page


def write_bench_page(output: Path, facts: dict[str, Any], rows: Sequence[Row]) -> Path:
    """facts: what bench.json holds. Returns the path of the page."""
    engine, on = facts["engine"], facts["machine"]
    report = Report(
        "Benchmark of rlhf-fast", f"On {on['processor']}" + "".join(f", {card['name']}" for card in on["gpus"]) + "."
    )
    report.add("Machine", topics(_machine_topics(on, engine)))
    floors = {
        name: {"floor": min(p["floor"], p["seconds"]), "above": max(0.0, p["seconds"] - p["floor"])}
        for name, p in engine["phases"].items()
    }
    colours = {"floor": COLOURS[BASE], "above": COLOURS[SLACK]}
    chart = stacked_bars(floors, colours, lambda value: f"{value:.3g} s", "Seconds of each phase above their floor")
    report.add(
        "An iteration", f'{legend(["floor", "above"], colours)}<div class="scroll">{chart}</div>', _engine_note(engine)
    )
    memory = MemoryTable.from_json(engine["memory"])
    owners = [owner for owner in DRAWN if owner in memory.owners]
    held = {phase: {owner: memory.bytes[phase].get(owner, 0) for owner in owners} for phase in memory.phases}
    chart = stacked_bars(held, COLOURS, words, "Bytes by owner at the peak of each phase")
    report.add("Its memory", f'{legend(owners, COLOURS)}<div class="scroll">{chart}</div>', _MEMORY)
    for op in dict.fromkeys(row.op for row in rows):
        report.add(op, _kernel_rows([row for row in rows if row.op == op]), _KERNELS if op == rows[0].op else "")
    return report.write(output / BENCH_PAGE)


_MEMORY = "The most that the process held in each phase of the first iteration, and whose it was."
_KERNELS = (
    "The first variant of each shape is what a run uses here. A ratio is the median of the ratios within a round, of "
    "variants that take turns in one process; the limit is the rate of a large product or a large copy, measured in "
    "the same rounds."
)


def _engine_note(engine: dict[str, Any]) -> str:
    return (
        f"{engine_words(engine)}: {engine['seconds']:.3g} s, {engine['sampled_tokens_per_second']:,.0f} tokens sampled "
        "a second. The floor is the least that a phase's arithmetic can take at the rates of this machine."
    )


def _machine_topics(on: dict[str, Any], engine: dict[str, Any]) -> dict[str, str]:
    cards = {"GPU": ", ".join(f"{card['name']}, {card['memory_gib']} GiB" for card in on["gpus"])} if on["gpus"] else {}
    return {
        "Processor": f"{on['processor']}, {on['cores']} cores, {on['threads']} threads used",
        "Instructions": on["instructions"],
        **cards,
        "Memory": f"{on['memory_gib']} GiB",
        "Rates": f"{engine['flops_per_second'] / 1e9:,.0f} GFLOP/s in {engine['dtype']}, "
        f"{engine['bytes_per_second'] / 1e9:,.1f} GB/s",
        "Load": f"{' '.join(map(str, on['load']))} in the last 1, 5 and 15 minutes",
        "Software": f"{on['system']}; " + ", ".join(f"{name} {number}" for name, number in on["versions"].items()),
    }


def _kernel_rows(rows: Sequence[Row]) -> str:
    slowest, body = max(row.times_ours for row in rows), ""
    for row in rows:
        wide = 100 * row.times_ours / slowest
        floor = "" if row.times_floor is None else f"{row.times_floor:.2f}"
        note = f" <small>{escape(row.note)}</small>" if row.note else ""
        body += (
            f"<tr><td>{escape(row.shape)}<td>{escape(row.variant)}{note}"
            f'<td class="share"><i class="p{COLOURS[BASE]}" style="width:{wide:.1f}%"></i>'
            f'<td class="n">{row.times_ours:.2f}<td class="n">{floor}<td class="n">{row.percent_of_limit:.1f}'
            f'<td class="n">{row.milliseconds:.3g}</tr>'
        )
    return (
        '<div class="scroll"><table class="dense"><thead><tr><th>shape<th>variant<th><span class="hidden">time</span>'
        '<th class="n">time / first<th class="n">/ bare products<th class="n">% of limit<th class="n">ms</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
