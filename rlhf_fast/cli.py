"""The command line: `rlhf-fast VERB --config file.yaml --field value`."""

from __future__ import annotations

import importlib
import logging
import sys
from dataclasses import dataclass
from typing import Any

from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.interrupt import Interrupted


@dataclass(frozen=True)
class Verb:
    """Where a verb's config and its function are (module:name), and one line of help."""

    config: str
    run: str
    help: str


VERBS = {
    "sft": Verb("rlhf_fast.train.sft_config:SFTConfig", "rlhf_fast.train.sft:run_sft", "supervised fine-tuning"),
    "reward": Verb(
        "rlhf_fast.preferences.config:RewardConfig", "rlhf_fast.preferences.reward_model:run_reward",
        "a reward model from ranked responses",
    ),
    "ppo": Verb(
        "rlhf_fast.train.ppo_config:PPORunConfig", "rlhf_fast.train.ppo_run:run_ppo",
        "PPO against a reward, with a KL penalty",
    ),
    "generate": Verb(
        "rlhf_fast.generate.config:GenerateConfig", "rlhf_fast.generate.run:run_generate", "responses to prompts"
    ),
    "evaluate": Verb(
        "rlhf_fast.evaluate.config:EvaluateConfig", "rlhf_fast.evaluate.run:run_evaluate",
        "two models compared on held-out prompts",
    ),
    "export": Verb(
        "rlhf_fast.export.config:ExportConfig", "rlhf_fast.export.run:run_export",
        "an adapter merged into its base, with a model card",
    ),
    "demo": Verb(
        "rlhf_fast.demo.config:DemoConfig", "rlhf_fast.demo.run:run_demo",
        "all of it on bundled customer-service data",
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
    """Exit status: 0, 2 with a message for what the user gave, 1 where another process was lost, or 128 + the signal
    that stopped it (130, 143)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    name, *rest = arguments
    if name not in VERBS:
        print(f"unknown verb {name!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    from rlhf_fast.runtime.distributed import LostProcess, is_main, rank, world_size
    from rlhf_fast.runtime.launch import stop
    from rlhf_fast.runtime.parse import parse_config
    from rlhf_fast.runtime.shown import PrintableFormatter, printable

    log = logging.StreamHandler()
    log.setFormatter(PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[log])
    if is_main():
        logging.getLogger("rlhf_fast.runtime.saving").setLevel(logging.INFO)  # it says where a resumed run goes on
        logging.getLogger("rlhf_fast.notices").setLevel(logging.INFO)  # it says what a run makes of its rows
    verb, where = VERBS[name], f"rlhf-fast {name}" + (f", process {rank()}" if world_size() > 1 else "")
    try:
        result = load(verb.run)(parse_config(load(verb.config), rest, prog=f"rlhf-fast {name}"))
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
        print(result)
    stop()
    return 0


def load(path: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
