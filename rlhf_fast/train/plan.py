"""The memory and the least time of a PPO run, predicted before it: bytes by phase and owner.

    Machine                      where it would run: CARDS, or this machine
    read_workload(config, ...)   lengths of prompts, and with them the micro-batches that the run will meet
    predict(config, machine, workload)      -> MemoryTable
    least_seconds(config, machine, workload)   of an iteration

A prediction is what is held in each phase (weights, adapters, moments), what the phase allocates on top, traced with
the run's own code (`rlhf_fast.train.plan_model`), and slack. Low: responses half as long as they may be, and nothing
lost in the allocator. High: the allocator wastes as much as it was ever seen to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.batches import cut_by_tokens
from rlhf_fast.profiling.memory_table import (
    ACTIVATIONS,
    BACKWARD,
    BASE,
    BASELINE,
    BUFFERS,
    CRITIC,
    DECODE,
    FORWARD,
    GRADIENTS,
    KV_CACHE,
    LOAD,
    OPTIMISER,
    OTHER_MODELS,
    PACKED,
    PHASES,
    POLICY,
    PREFILL,
    REWARD,
    SCORING,
    SLACK,
    STEP,
    WORKSPACE,
    MemoryTable,
)
from rlhf_fast.profiling.rates import Rates, measure_rates
from rlhf_fast.profiling.trace import Sequences
from rlhf_fast.runtime.device import choose_device
from rlhf_fast.runtime.memory import free_bytes, resident_bytes
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.plan_model import Facts, read_facts

GB, GIB = 10**9, 2**30
COLUMN_BYTES = 8 + 8 + 8 * 4
"""Of a slot of a rollout: its row, its label, and the columns."""
CHUNK_ROWS = 256
"""Rows of logits at a time where torch computes log-probs (`rlhf_kernels.logprobs.reference`)."""
FORWARD_CHUNKS, BACKWARD_CHUNKS, PRODUCT_CHUNKS = 4, 5, 3
"""How many tensors of so many logits in float32 it has at once; in the backward, beside the product that is added to
the gradient of the output embedding."""
THREAD_SCRATCH = 2**20
"""Bytes of scratch that a C++ kernel takes for a thread while the most is held, about."""
CARD_WORKSPACE = 256 * 2**20
"""Of the kernels of log-probs on a card, which fill a buffer with logits."""
SLACK_SHARE, SLACK_MOST = {"cpu": 0.02, "cuda": 0.05}, {"cpu": 0.15, "cuda": 0.10}
"""What the allocator holds beyond what was asked for and kept, as a share of it: expected, and the most that is allowed
for."""
FIRST_USE, FIRST_USE_MOST = 20 * 2**20, 65 * 2**20
"""Of the CPU's libraries: pages that the first steps touch, compiled products, objects of Python."""
INPUTS = 40 * 2**20
"""Of a tokenizer and prompts with the libraries that read them, where none are read for the plan."""
CONTEXT = 0.45 * GIB
"""Of a CUDA process before the first tensor."""
LONGEST_PLANNED = 64
"""Iterations whose micro-batches are looked at."""


@dataclass(frozen=True)
class Machine:
    """bytes: what the process may take; baseline: what it takes before a model is opened."""

    name: str
    device: str
    bytes: float
    baseline: float
    rates: Rates
    threads: int = 1


CARDS = {
    "16GB": ("RTX A4000", 16, Rates(76.7e12, 448e9)),
    "24GB": ("A10", 24, Rates(125e12, 600e9)),
    "48GB": ("RTX A6000", 48, Rates(154.8e12, 768e9)),
    "80GB": ("A100", 80, Rates(312e12, 2039e9)),
}
"""By size: a card that has it, its GB, and the vendor's rates of dense bfloat16 products and of memory."""


def card(size: str) -> Machine:
    name, gigabytes, rates = CARDS[size]
    return Machine(f"a card of {size} ({name})", "cuda", gigabytes * GB, CONTEXT, rates)


def this_machine(config: PPORunConfig, ram: float | None = None, *, inputs_read: bool = True) -> Machine:
    """What a run would compute on here; ram: bytes that a process on the CPU may take, instead of what is free. To be
    called after tokenizer and prompts are read, or with `inputs_read=False`: what the process holds then is its
    baseline."""
    device = torch.device("cpu") if ram is not None else choose_device(config.use_cpu)
    rates = _rates(torch.float32 if config.dtype == "float32" else torch.bfloat16, device)
    if device.type == "cuda":
        return Machine("this machine's GPU", "cuda", free_bytes(device) + CONTEXT, CONTEXT, rates)
    held = resident_bytes() + (0 if inputs_read else INPUTS)
    limit = held + free_bytes(device) if ram is None else ram
    return Machine("this machine's CPU", "cpu", limit, held, rates, torch.get_num_threads())


@cache
def _rates(dtype: torch.dtype, device: torch.device) -> Rates:
    return measure_rates(dtype, device)


@dataclass(frozen=True)
class Workload:
    """Prompt tokens of the sequences of the first iterations, in the order of the run; different: the same of prompts
    that are prefilled, as equal ones are read once; seed: of the run."""

    iterations: tuple[tuple[int, ...], ...]
    seed: int
    different: tuple[tuple[int, ...], ...] = ()

    @property
    def longest(self) -> int:
        return max(map(max, self.iterations))


def read_workload(config: PPORunConfig, prompts: Prompts | None, prompt_length: int) -> Workload:
    """Of the run's own prompts, or of prompts of `prompt_length` tokens where none are given."""
    size = config.batch_size
    if prompts is None:
        return Workload(((prompt_length,) * size,), config.seed)
    count = min(LONGEST_PLANNED, -(-len(prompts) // size))
    batches = [[prompts.ids[row] for row in prompts.batch(i, size, config.seed)] for i in range(count)]
    different = [{tuple(ids): len(ids) for ids in batch}.values() for batch in batches]
    return Workload(tuple(tuple(map(len, batch)) for batch in batches), config.seed, tuple(map(tuple, different)))


@dataclass(frozen=True)
class Loads:
    """The largest micro-batches: of a prefill, of scoring, of an update the first of an optimiser step and the later
    ones (perhaps none), which find its gradients; the tokens and slots of a rollout; rows of the cache, and their
    length."""

    prefill: Sequences
    scoring: Sequences
    first: Sequences
    later: Sequences
    tokens: int
    slots: int
    rows: int
    length: int


def loads(config: PPORunConfig, workload: Workload, response: int) -> Loads:
    """Of responses of `response` tokens each."""
    most = config.max_tokens_per_micro_batch
    prefills: list[Sequences] = []
    scorings: list[Sequences] = []
    firsts: list[Sequences] = []
    laters: list[Sequences] = []
    for number, prompts in enumerate(workload.iterations):
        pairs = [(prompt, response) for prompt in prompts]
        read = workload.different[number] if workload.different else prompts
        prefills += _cut([(prompt, 0) for prompt in read[: config.max_rollout_batch]], most)
        scorings += _cut(pairs, most)
        shuffle = torch.Generator().manual_seed(workload.seed + number)
        for _ in range(config.num_ppo_epochs):
            for minibatch in torch.randperm(len(pairs), generator=shuffle).tensor_split(config.num_mini_batches):
                first, *rest = _cut([pairs[i] for i in minibatch.tolist()], most)
                firsts.append(first)
                laters += rest
    slots = response * len(workload.iterations[0])
    tokens = max(map(sum, workload.iterations)) + slots
    rows = min(config.max_rollout_batch, len(workload.iterations[0]))
    return Loads(
        _largest(prefills), _largest(scorings), _largest(firsts), _largest(laters), tokens, slots, rows,
        workload.longest + config.response_length,
    )  # fmt: skip


def _cut(pairs: Sequence[tuple[int, int]], most: int) -> list[Sequences]:
    groups = cut_by_tokens([sum(pair) for pair in pairs], most)
    return [Sequences(tuple(pairs[i] for i in group)) for group in groups]


def _largest(found: list[Sequences]) -> Sequences:
    return max(found, key=lambda load: (load.tokens, load.slots), default=Sequences(()))


def predict(config: PPORunConfig, machine: Machine, workload: Workload) -> MemoryTable:
    """Bytes by phase and owner at the peaks, with a low and a high total of each phase."""
    facts = read_facts(config, machine.device)
    low = _table(config, machine, facts, loads(config, workload, max(1, config.response_length // 2)))
    table = _table(config, machine, facts, loads(config, workload, config.response_length))
    first_use, most = (FIRST_USE, FIRST_USE_MOST) if machine.device == "cpu" else (0, 0)
    for phase in table.phases:
        dynamic = table.total(phase).expected - machine.baseline
        table.low[phase] = low.total(phase).expected
        table.high[phase] = machine.baseline + most + (1 + SLACK_MOST[machine.device]) * dynamic
        table.add(phase, SLACK, SLACK_SHARE[machine.device] * dynamic + first_use)
    return table


def _table(config: PPORunConfig, machine: Machine, facts: Facts, load: Loads) -> MemoryTable:
    table, w = MemoryTable(), facts.weights
    for phase in PHASES:
        table.add(phase, BASELINE, machine.baseline)
        table.add(phase, BASE, w.base)
        if phase != LOAD:
            for owner, count in _beside_base(facts).items():
                table.add(phase, owner, count)
            table.add(phase, OPTIMISER, 2 * w.gradients)
            table.add(phase, BUFFERS, _undo(facts) + _rollout(facts, load, of_prompts=phase in (PREFILL, DECODE)))
    _add_load(table, facts, machine)
    _add_rollout(table, config, machine, facts, load)
    _add_scoring(table, facts, machine, load)
    _add_update(table, facts, machine, load)
    return table


def _undo(facts: Facts) -> int:
    """The copy of what is trained and of its moments, to give up a step."""
    return 3 * facts.weights.gradients if facts.can_undo else 0


def _rollout(facts: Facts, load: Loads, *, of_prompts: bool) -> int:
    """Columns, the reference's states where the critic reads them, and the states of the trunk."""
    if of_prompts:
        return 0
    state = facts.hidden_size * facts.dtype.itemsize
    trunk = load.tokens * state if facts.trunk_depth else 0
    return 8 * load.tokens + load.slots * (COLUMN_BYTES + state * facts.reads_reference) + trunk


def _beside_base(facts: Facts) -> dict[str, int]:
    """Other models, adapters and heads."""
    w = facts.weights
    return {OTHER_MODELS: w.other_models, POLICY: w.policy, CRITIC: w.critic, REWARD: w.reward}


def _add_load(table: MemoryTable, facts: Facts, machine: Machine) -> None:
    """The base is read and checked, which takes its output embedding in float32, and then the others are added. A file
    in another dtype is mapped beside what is made of it, on a CPU: resident, though nobody asks for it."""
    w, others = facts.weights, _beside_base(facts)
    if machine.device == "cpu" and w.stored != w.base:
        table.add(LOAD, SLACK, w.stored)
    for owner, count in ({BASE: w.checked} if w.checked > sum(others.values()) else others).items():
        table.add(LOAD, owner, count)


def _add_rollout(table: MemoryTable, config: PPORunConfig, machine: Machine, facts: Facts, load: Loads) -> None:
    w, on_cpu = facts.weights, machine.device == "cpu"
    packed = (w.packed if on_cpu else 0) + w.float_head * on_cpu
    held = table.total(PREFILL).expected + packed
    rows = rows_of_cache(config, facts, load, machine.bytes - held)
    for phase in (PREFILL, DECODE):
        table.add(phase, PACKED, packed)
        table.add(phase, KV_CACHE, rows * load.length * facts.cache_bytes)
    table.add(PREFILL, ACTIVATIONS, facts.bytes_of("prefill", load.prefill))
    step = facts.bytes_of("decode", Sequences(((load.length, 0),) * rows)) if not packed or not w.packed else 0
    logits = 0 if on_cpu and not w.float_head else 4 * rows * facts.vocabulary * (3 if w.float_head else 1)
    table.add(DECODE, ACTIVATIONS, step)
    table.add(DECODE, WORKSPACE, logits)


def rows_of_cache(config: PPORunConfig, facts: Facts, load: Loads, free: float) -> int:
    """As `rlhf_fast.rollout.engine.rows_that_fit`, of `free` bytes; at least one."""
    allowed = free / 2 if config.max_kv_cache_gb is None else config.max_kv_cache_gb * GB
    return max(1, min(load.rows, int(allowed // max(1, load.length * facts.cache_bytes))))


def _add_scoring(table: MemoryTable, facts: Facts, machine: Machine, load: Loads) -> None:
    table.add(SCORING, ACTIVATIONS, facts.bytes_of("scoring", load.scoring))
    table.add(SCORING, WORKSPACE, _scratch(machine))


def _scratch(machine: Machine) -> int:
    return machine.threads * THREAD_SCRATCH if machine.device == "cpu" else CARD_WORKSPACE


def _add_update(table: MemoryTable, facts: Facts, machine: Machine, load: Loads) -> None:
    w = facts.weights
    for phase, name in ((FORWARD, "forward"), (BACKWARD, "backward")):
        first, later = (
            _of_update(facts, machine, name, load.first),
            _of_update(facts, machine, name, load.later, "later"),
        )
        binds = later if load.later.lengths and sum(later) + w.gradients > sum(first) else first
        table.add(phase, GRADIENTS, w.gradients if binds is later else 0)
        table.add(phase, ACTIVATIONS, binds[0])
        table.add(phase, WORKSPACE, binds[1])
    if machine.device == "cpu":
        _add_kept(table, facts, machine, load)
    table.add(STEP, GRADIENTS, w.gradients)
    table.add(STEP, WORKSPACE, 2 * w.largest if machine.device == "cpu" else w.gradients)


def _of_update(
    facts: Facts, machine: Machine, name: str, load: Sequences, backward: str = "backward"
) -> tuple[float, float]:
    """Activations and workspace at the peak of a micro-batch's forward or backward: it is in the layers, or in the
    log-probs where these make the gradient of the output embedding."""
    layers = facts.bytes_of("forward" if name == "forward" else backward, load)
    directions = 0 if facts.materialises else 4 * load.slots * facts.hidden_size
    found: tuple[float, float] = (layers - directions, directions + _scratch(machine))
    if facts.materialises:
        held = facts.bytes_of("logprobs" if name == "forward" else "logprobs_backward", load)
        found = max(found, (held, _logits(facts, machine, name, load.slots)), key=sum)
    return found


def _add_kept(table: MemoryTable, facts: Facts, machine: Machine, load: Loads) -> None:
    """What the C library keeps of memory that was freed, until it is asked to give it back after an update: the blocks
    of scoring and, where activations are computed again, of the forward are not those that the backward asks for.
    Logits are too large for it to keep, and come on top of all that the layers ever had."""
    scoring = facts.bytes_of("scoring", load.scoring)
    forward = facts.bytes_of("forward", load.first) if facts.run.activation_checkpointing else 0.0
    backward = facts.bytes_of("backward", load.first)
    logits = _logits(facts, machine, "backward", load.first.slots) if facts.materialises else 0.0
    held = table.bytes[BACKWARD][ACTIVATIONS] + table.bytes[BACKWARD][WORKSPACE]
    layers = backward - facts.weights.gradients * facts.materialises
    table.add(FORWARD, SLACK, scoring)
    table.add(BACKWARD, SLACK, scoring + forward + max(0.0, min(layers + logits - held, logits)))
    table.add(STEP, SLACK, scoring + forward + layers)


def _logits(facts: Facts, machine: Machine, name: str, slots: int) -> float:
    """What the log-probs of `rlhf_kernels` take beside inputs and results where the output embedding is trained: logits
    of a chunk of rows, and in the backward its gradient in float32."""
    gradient = 4 * facts.vocabulary * facts.hidden_size
    converted = 0 if facts.dtype == torch.float32 else gradient
    if machine.device != "cpu":
        return CARD_WORKSPACE + gradient * (name == "backward")
    chunk = 4 * facts.vocabulary * min(CHUNK_ROWS, slots)
    if name == "forward":
        return converted + FORWARD_CHUNKS * chunk
    return converted + gradient + max(BACKWARD_CHUNKS * chunk, PRODUCT_CHUNKS * chunk + gradient)


# -- time


def least_seconds(config: PPORunConfig, machine: Machine, workload: Workload) -> dict[str, float]:
    """By phase, the least that the products of an iteration take at the machine's rates. Adapters, attention and what a
    pass does beside its products are left out."""
    facts = read_facts(config, machine.device)
    load, rates = loads(config, workload, config.response_length), machine.rates
    read = facts.weights.linear * facts.dtype.itemsize
    per_token, head = 2 * facts.weights.linear, 2 * facts.vocabulary * facts.hidden_size  # operations
    passes = -(-load.tokens // config.max_tokens_per_micro_batch)
    above = 1 - facts.trunk_depth / facts.layers  # of the layers: those that run for every role
    critic, whole = config.critic == "adapter", not config.use_peft
    decoded = -(-load.slots // load.rows)  # steps of so many rows
    step = rates.least_seconds(load.rows * (per_token + head), read + facts.weights.head)
    prefill = rates.least_seconds((load.tokens - load.slots) * per_token, read * passes)
    scorings = 2 + critic + (config.reward_model_path is not None)
    scored = load.tokens * per_token * (scorings * above + 1 - above) + 2 * load.slots * head
    products = 2 + bool(config.activation_checkpointing)  # forward, gradient of the input, forward again
    updated = load.tokens * per_token * above * ((products + whole) + products * critic) + 2 * load.slots * head
    return {
        "rollout": prefill + decoded * step,
        "scoring": rates.least_seconds(scored, scorings * passes * read),
        "update": config.num_ppo_epochs * rates.least_seconds(updated, (1 + critic) * products * passes * read),
    }
