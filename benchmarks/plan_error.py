"""Predicted beside measured memory of PPO runs: three shapes of models, full or LoRA, with and without activation
checkpointing, of two lengths.

    python -m benchmarks.plan_error --tokenizer MODEL_FOLDER [--only llama-lora ...] [--output errors.json]

Each run is a process of its own with random weights and prompts; what is predicted for it comes from another. Prints
the table of docs/memory.md: the error of each phase and of the peak, the worst first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config

from rlhf_fast.profiling.memory_table import GIB, MemoryTable

PREDICT = """
import json, sys
from rlhf_fast.train.plan import predict, read_workload, this_machine
from rlhf_fast.train.plan_run import prompts_of
from rlhf_fast.train.config import PPORunConfig
import rlhf_fast.train.ppo_run
machine, found = None, []
for file in sys.argv[2:]:
    config = PPORunConfig(**json.load(open(file)))
    prompts = prompts_of(config)
    machine = machine or this_machine(config)
    found.append(predict(config, machine, read_workload(config, prompts, 0)).as_json())
json.dump(found, open(sys.argv[1], "w"))
"""
MEASURE = """
import json, sys
from rlhf_fast import PPORunConfig, run_ppo
from rlhf_fast.runtime.memory import peak_bytes
given = json.load(open(sys.argv[2]))
run_ppo(PPORunConfig(**given))
peak = peak_bytes(None)  # ru_maxrss would be that of the process that started this one, too
output = given["output_dir"] + "-again"
run_ppo(PPORunConfig(**given | {"output_dir": output, "memory_profile": True}))
json.dump(json.load(open(output + "/memory.json")) | {"peak": peak}, open(sys.argv[1], "w"))
"""
REWARD = """
def length(prompts, responses, **columns):
    return [float(len(response)) for response in responses]
"""


@dataclass(frozen=True)
class Case:
    """One run."""

    shape: str
    use_peft: bool
    recompute: bool
    prompt: int  # words
    response: int
    tokens: int  # of a micro-batch

    @property
    def name(self) -> str:
        kind = "lora" if self.use_peft else "full"
        return f"{self.shape}-{kind}{'-recompute' * self.recompute}-{self.response}"


def shapes(vocabulary: int) -> dict[str, PreTrainedConfig]:
    sizes = {"vocab_size": vocabulary, "max_position_embeddings": 2048, "tie_word_embeddings": True}
    return {
        "llama": LlamaConfig(
            hidden_size=256, intermediate_size=768, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2,
            **sizes,
        ),
        "qwen2": Qwen2Config(
            hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2,
            **sizes,
        ),
        "gpt2": GPT2Config(vocab_size=vocabulary, n_embd=256, n_layer=6, n_head=4, n_positions=2048),
    }  # fmt: skip


def cases() -> Iterator[Case]:
    """Twelve: every shape with all weights or LoRA, recomputing or not; short and long by turns."""
    for number, (shape, use_peft, recompute) in enumerate(
        product(("llama", "qwen2", "gpt2"), (True, False), (False, True))
    ):
        long = number % 2 == (number // 4) % 2
        yield Case(shape, use_peft, recompute, *((192, 64, 4096) if long else (48, 16, 2048)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="A model folder whose tokenizer and vocabulary are used.")
    parser.add_argument("--only", nargs="*", help="Names of cases. Default: all.")
    parser.add_argument("--output", help="Keep measurements in this JSON file; those that it has are not taken again.")
    given = parser.parse_args()
    chosen = [case for case in cases() if not given.only or case.name in given.only]
    with tempfile.TemporaryDirectory() as folder:
        found = compare(chosen, given.tokenizer, Path(folder), None if given.output is None else Path(given.output))
    print(as_markdown(found))


@dataclass(frozen=True)
class Pair:
    """Of a run: tables, and the most that the process had resident in a run that nobody measured."""

    name: str
    predicted: MemoryTable
    measured: MemoryTable
    peak: float

    @property
    def errors(self) -> dict[str, tuple[float, float]]:
        """Predicted and measured bytes: of a phase those that were asked for, without the process and slack; of the
        peak all that is resident."""
        both = [phase for phase in self.predicted.phases if phase in self.measured.phases]
        found = {phase: (self.predicted.asked(phase), self.measured.asked(phase)) for phase in both}
        return found | {"peak": (self.predicted.peak.expected, self.peak)}


def compare(chosen: list[Case], tokenizer: str, folder: Path, kept: Path | None = None) -> list[Pair]:
    """Each run is measured in a process of its own; all predictions come from one. kept: a JSON file of measurements,
    which are taken from there where it has them."""
    files = {}
    for case in chosen:
        (folder / case.name).mkdir()
        files[case.name] = folder / case.name / "config.json"
        files[case.name].write_text(json.dumps(write_inputs(case, tokenizer, folder / case.name)))
    measured = json.loads(kept.read_text()) if kept is not None and kept.exists() else {}
    for name, file in files.items():
        if name not in measured:
            facts = in_process(MEASURE, folder / "measured.json", file)
            measured[name] = {"measured": facts["measured"], "peak": facts["peak"]}
            if kept is not None:
                kept.write_text(json.dumps(measured, indent=1) + "\n")
    predicted = in_process(PREDICT, folder / "predicted.json", *files.values())
    return [
        Pair(
            name,
            MemoryTable.from_json(table),
            MemoryTable.from_json(measured[name]["measured"]),
            measured[name]["peak"],
        )
        for name, table in zip(files, predicted, strict=True)
    ]


def in_process(code: str, result: Path, *files: Path) -> Any:
    subprocess.run([sys.executable, "-c", code, result, *files], check=True, stdout=subprocess.DEVNULL)
    return json.loads(result.read_text())


def write_inputs(case: Case, tokenizer: str, folder: Path) -> dict[str, Any]:
    """A model with random weights, prompts and a reward in `folder`; returns the config of a run."""
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.save_pretrained(folder / "model")
    config = shapes(-(-len(words) // 128) * 128)[case.shape]
    config.eos_token_id = config.bos_token_id = words.eos_token_id
    config.pad_token_id = None
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "model")
    (folder / "reward.py").write_text(REWARD)
    prompts = [" ".join(["word"] * (case.prompt - 4 * (i % 5))) for i in range(40)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
    return {
        "sft_model_path": str(folder / "model"), "dataset_name": str(folder / "prompts.jsonl"),
        "reward_funcs": [f"{folder}/reward.py:length"], "output_dir": str(folder / "out"), "use_peft": case.use_peft,
        "activation_checkpointing": case.recompute, "response_length": case.response, "stop_token": "none",
        "max_tokens_per_micro_batch": case.tokens, "per_device_train_batch_size": 20, "total_episodes": 40,
        "num_ppo_epochs": 1, "save_strategy": "no", "disable_tqdm": True, "dtype": "auto", "use_cpu": True,
        "log_rollouts": False,
    }  # fmt: skip


def as_markdown(found: list[Pair]) -> str:
    """The largest error of each phase, the worst first; then the peak of each run."""
    lines = ["| phase | predicted, GiB | measured | error | run |", "| --- | ---: | ---: | ---: | --- |"]
    rows: dict[str, tuple[float, float, float, str]] = {}
    for pair in found:
        for phase, (a, b) in pair.errors.items():
            if phase not in rows or abs(a / b - 1) > abs(rows[phase][0]):
                rows[phase] = (a / b - 1, a / GIB, b / GIB, pair.name)
    for phase, (error, a, b, name) in sorted(rows.items(), key=lambda item: -abs(item[1][0])):
        lines.append(f"| {phase} | {a:.3f} | {b:.3f} | {error:+.1%} | {name} |")
    lines += [
        "",
        "| run | predicted peak, GiB | low to high | measured | error |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for pair in found:
        total, b = pair.predicted.peak, pair.peak
        between = f"{total.low / GIB:.3f} to {total.high / GIB:.3f}"
        error = f"{total.expected / b - 1:+.1%}"
        lines.append(f"| {pair.name} | {total.expected / GIB:.3f} | {between} | {b / GIB:.3f} | {error} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
