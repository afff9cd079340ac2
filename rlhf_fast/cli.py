"""The command line: `rlhf-fast VERB --config file.yaml --field value`. Results go to stdout, all else to stderr."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlhf_fast import __version__
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.hints import verb_hint
from rlhf_fast.runtime.interrupt import Interrupted


@dataclass(frozen=True)
class Verb:
    """Where a verb's config and its function are (module:name), and one line of help."""

    config: str
    run: str
    help: str


VERBS = {
    "sft": Verb("rlhf_fast.train.config:SFTConfig", "rlhf_fast.train.sft:run_sft", "supervised fine-tuning"),
    "reward": Verb(
        "rlhf_fast.preferences.config:RewardConfig", "rlhf_fast.preferences.reward_model:run_reward",
        "a reward model from ranked responses",
    ),
    "ppo": Verb(
        "rlhf_fast.train.config:PPORunConfig", "rlhf_fast.train.ppo_run:run_ppo",
        "PPO against a reward, with a KL penalty",
    ),
    "plan": Verb(
        "rlhf_fast.train.config:PlanConfig", "rlhf_fast.train.plan_run:run_plan",
        "memory and time of a PPO run, before it: whether it fits, and what would help",
    ),
    "generate": Verb(
        "rlhf_fast.generate.config:GenerateConfig", "rlhf_fast.generate.run:run_generate", "responses to prompts"
    ),
    "evaluate": Verb(
        "rlhf_fast.evaluate.config:EvaluateConfig", "rlhf_fast.evaluate.run:run_evaluate",
        "two models compared on held-out prompts",
    ),
    "annotate": Verb(
        "rlhf_fast.annotate.config:AnnotateConfig", "rlhf_fast.annotate.run:run_annotate",
        "a page on which people compare responses, and their votes as training data",
    ),
    "export": Verb(
        "rlhf_fast.export.config:ExportConfig", "rlhf_fast.export.run:run_export",
        "an adapter merged into its base, with a model card",
    ),
    "demo": Verb(
        "rlhf_fast.demo.config:DemoConfig", "rlhf_fast.demo.run:run_demo",
        "all of it on bundled customer-service data",
    ),
    "bench": Verb(
        "rlhf_fast.bench.config:BenchConfig", "rlhf_fast.bench.run:run_bench",
        "kernels and a small PPO run measured on this machine",
    ),
}  # fmt: skip

USAGE = "\n".join(
    [
        "usage: rlhf-fast VERB [--config file.yaml] [--field value ...]",
        "",
        *(f"  {name:<10} {verb.help}" for name, verb in VERBS.items()),
        "",
        "rlhf-fast VERB --help lists the fields of a verb.",
    ]
)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, 2 with a message for what the user gave, 1 where another process was lost, 3 for a plan that does
    not fit, or 128 + the signal that stopped it (130, 143; 141 where nobody reads on what is printed)."""
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except _NobodyReads:
        return 128 + signal.Signals["SIGPIPE"].value


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        with _printing():
            print(f"rlhf-fast {__version__}" if "--version" in arguments else USAGE)
        return 0
    name, *rest = arguments
    if name not in VERBS:
        hint = verb_hint(name, VERBS)
        print(f"unknown verb {name!r}{f'; {hint}' if hint else ''}\n\n{USAGE}", file=sys.stderr)
        return 2
    from rlhf_fast.runtime.distributed import LostProcess, is_main, rank, world_size
    from rlhf_fast.runtime.parse import parse_config
    from rlhf_fast.runtime.shown import printable

    _set_up_output(is_main())
    verb, where = VERBS[name], f"rlhf-fast {name}" + (f", process {rank()}" if world_size() > 1 else "")
    try:
        with _printing():  # --help
            config = parse_config(load(verb.config), rest, prog=f"rlhf-fast {name}")
        result = load(verb.run)(config)
    except UsageError as error:
        print(f"{where}: {printable(str(error))}", file=sys.stderr)
        return 2
    except Interrupted as stopped:
        print(f"{where}: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except LostProcess as error:
        print(f"{where}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{where}: interrupted", file=sys.stderr)
        return 130
    if is_main():
        with _printing():
            print(result)
    return getattr(result, "status", 0)


class _NobodyReads(Exception):
    """Whatever stdout is piped to has ended."""


@contextmanager
def _printing() -> Iterator[None]:
    """Around what prints to stdout: raise `_NobodyReads` where nobody reads it on, as after `| head`."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would raise again at exit
        raise _NobodyReads from None


def _set_up_output(main: bool) -> None:
    """Lines of ours on stderr, and no progress of transformers' own; of several processes only process 0 shows any."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    from rlhf_fast.runtime.shown import PlainHandler, notices
    from rlhf_fast.runtime.tracking import on_terminal

    logging.basicConfig(level=logging.WARNING, handlers=[PlainHandler()])
    if main:
        notices.setLevel(logging.INFO)
        logging.getLogger("rlhf_fast.runtime.saving").setLevel(logging.INFO)  # it says where a resumed run goes on
    downloads = main and on_terminal() and not are_progress_bars_disabled()
    disable_progress_bar()  # of reading and writing weights, amid lines of ours; of downloads too
    if downloads:
        enable_progress_bars()


def load(path: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
