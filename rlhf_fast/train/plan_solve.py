"""What fits: the largest setting that a plan allows, and what would help where it allows too little.

fits(config, machine, workload)      whether the high prediction of every phase is within the machine
largest(name, ...)                   the largest value of a field that fits, or None
helps(...)                           changes of the config, with what each saves of the peak
choose(...)                          the same run with memory settings that fit and are fast: no result depends on them
table_of_cards(...)                  sequences at a time for each card, full or LoRA, and context
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.profiling.memory_table import MemoryTable
from rlhf_fast.runtime.config import BY_DEVICE
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.plan import CARDS, Machine, card, predict, read_workload

SOLVED = ("per_device_train_batch_size", "response_length", "max_tokens_per_micro_batch")
MOST = 1 << 20
"""Of any setting that is solved for."""
CONTEXTS = (1024, 4096, 16384)
HALF = 2


def fits(table: MemoryTable, machine: Machine) -> bool:
    """By the high prediction: what fits is to run, not to run perhaps."""
    return max(table.total(phase).high for phase in table.phases) <= machine.bytes


def largest(
    name: str, config: PPORunConfig, machine: Machine, prompts: Prompts | None, prompt_length: int, *,
    most: int = MOST,
) -> int | None:  # fmt: skip
    """The largest value of field `name` that fits, with all others as they are; None if not even 1 does; `most` where
    no value below is too large."""

    def fit(value: int) -> bool:
        changed = with_values(config, **{name: value})
        return fits(predict(changed, machine, read_workload(changed, prompts, prompt_length)), machine)

    low = max(1, config.num_mini_batches) if name == "per_device_train_batch_size" else 1
    return _largest(fit, low, most)


def _largest(fit: Callable[[int], bool], low: int, most: int) -> int | None:
    """The largest value from `low` to `most` that fits, to 1 in 64 of it; None if not even `low` does."""
    if not fit(low):
        return None
    high = low
    while high < most and fit(min(2 * high, most)):
        high = min(2 * high, most)
    if high == most:
        return most
    good, bad = high, min(2 * high, most)
    while bad - good > max(1, good // 64):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fit(middle) else (good, middle)
    return good


def with_values(config: PPORunConfig, **values: Any) -> PPORunConfig:
    """A config with other values, made afresh."""
    if "activation_checkpointing" in values:
        values["gradient_checkpointing"] = values["activation_checkpointing"]
    return replace(config, **values)


def helps(
    config: PPORunConfig, machine: Machine, prompts: Prompts | None, prompt_length: int
) -> list[tuple[str, float]]:
    """Changes that make the peak smaller, the most helpful first: in words, with the bytes that each saves."""
    before = predict(config, machine, read_workload(config, prompts, prompt_length)).peak.expected
    found = []
    for words, values in _changes(config):
        changed = with_values(config, **values)
        after = predict(changed, machine, read_workload(changed, prompts, prompt_length)).peak.expected
        found.append((words, before - after))
    return sorted([pair for pair in found if pair[1] > before / 1000], key=lambda pair: -pair[1])


def _changes(config: PPORunConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    if not config.use_peft:
        yield "use_peft=true: adapters on one shared base", {"use_peft": True, "dtype": "auto"}
    if not config.activation_checkpointing:
        yield "activation_checkpointing=true: more time", {"activation_checkpointing": True}
    tokens = config.max_tokens_per_micro_batch // HALF
    if tokens:
        yield f"max_tokens_per_micro_batch={tokens}", {"max_tokens_per_micro_batch": tokens}
    if config.max_rollout_batch > 1:
        rows = config.max_rollout_batch // HALF
        yield f"max_rollout_batch={rows}", {"max_rollout_batch": rows}
    if config.critic == "adapter" and not config.bootstrap_truncated:
        yield "critic=policy_head: no forward of its own", {"critic": "policy_head"}
    if config.response_length > 1:
        yield f"response_length={config.response_length // HALF}", {"response_length": config.response_length // HALF}


def choose(config: PPORunConfig, machine: Machine, prompts: Prompts | None, prompt_length: int) -> dict[str, Any]:
    """Values of fields on which no result depends, with which the run fits and is fast: as many tokens in a micro-batch
    as make it faster, before activations are computed again, before fewer sequences are decoded together. Raises
    `UsageError` where nothing of it is enough."""
    longest = read_workload(config, prompts, prompt_length).longest + config.response_length
    most = max(
        BY_DEVICE["training tokens"][machine.device],
        longest,
        config.max_tokens_per_micro_batch * (machine.device == "cpu"),
    )
    rows = config.max_rollout_batch
    while True:
        for recompute in sorted({bool(config.activation_checkpointing), True}):
            tokens = most
            while tokens >= min(longest, most):
                values = {
                    "max_tokens_per_micro_batch": tokens, "activation_checkpointing": recompute,
                    "max_rollout_batch": rows,
                }  # fmt: skip
                changed = with_values(config, **values)
                if fits(predict(changed, machine, read_workload(changed, prompts, prompt_length)), machine):
                    return values
                tokens = max(longest, tokens // 2) if tokens > longest else 0
        if rows == 1:
            raise UsageError(
                f"the run does not fit {machine.name}, whatever max_tokens_per_micro_batch, activation_checkpointing "
                "and max_rollout_batch are: `rlhf-fast plan` says what takes the memory. Use a smaller model, shorter "
                "prompts and responses, or more memory."
            )
        rows = max(1, rows // 2)


def table_of_cards(config: PPORunConfig) -> Table:
    """The most sequences that are computed at a time for each card, with all weights trained or LoRA, and contexts half
    of which is response; '-' where not even one fits. Everything else is the config's."""
    name = Path(str(config.sft_model_path)).name
    shown = Table("card", title=f"PPO on {name}: the most sequences at a time")
    columns = [(use_peft, context) for use_peft in (False, True) for context in CONTEXTS]
    for use_peft, context in columns:
        shown.add_column(f"{'LoRA' if use_peft else 'full'} {context // 1024}k", justify="right")
    for size in CARDS:
        shown.add_row(size, *(_cell(config, size, use_peft, context) for use_peft, context in columns))
    return shown


def _cell(config: PPORunConfig, size: str, use_peft: bool, context: int) -> str:
    def fit(sequences: int) -> bool:
        given = with_values(
            config, use_peft=use_peft, dtype="auto", response_length=context // 2, max_length=context,
            per_device_train_batch_size=sequences, max_tokens_per_micro_batch=sequences * context,
            max_rollout_batch=sequences, max_kv_cache_gb=1e6, activation_checkpointing=True, num_mini_batches=1,
        )  # fmt: skip
        machine = card(size)
        return fits(predict(given, machine, read_workload(given, None, context // 2)), machine)

    found = _largest(fit, 1, 1024)
    return "-" if found is None else f"{found:,}" if found < 1024 else "1,024 or more"
