"""The command line: `rlhf-fast VERB --config file.yaml --field value`."""

from __future__ import annotations

import importlib
import sys

from rlhf_fast.runtime.errors import UsageError

VERBS = {
    "sft": ("rlhf_fast.train.sft_config:SFTConfig", "rlhf_fast.train.sft:run_sft", "supervised fine-tuning"),
    "ppo": ("rlhf_fast.train.ppo_config:PPOConfig", "rlhf_fast.train.ppo_run:run_ppo", "PPO against a reward model"),
}
"""verb -> (config class, what runs it, one line of help)"""

USAGE = "\n".join(
    [
        "usage: rlhf-fast VERB [--config file.yaml] [--field value ...]",
        "",
        *(f"  {verb:<10} {text}" for verb, (_, _, text) in VERBS.items()),
        "",
        "rlhf-fast VERB --help lists the fields of a verb.",
    ]
)


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 2 with a message for what the user gave."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        print(f"unknown verb {verb!r}\n\n{USAGE}", file=sys.stderr)
        return 2
    from rlhf_fast.runtime.parse import parse_config

    config_path, run_path, _ = VERBS[verb]
    try:
        output = _load(run_path)(parse_config(_load(config_path), rest, prog=f"rlhf-fast {verb}"))
    except UsageError as error:
        print(f"rlhf-fast {verb}: {error}", file=sys.stderr)
        return 2
    print(f"saved to {output}")
    return 0


def _load(path: str):
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
