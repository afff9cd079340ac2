"""The numbers of small runs, to the last bit, for a change that must not change them.

    python -m benchmarks.same_numbers before.json                       # at one commit; a minute on a free core
    python -m benchmarks.same_numbers after.json --against before.json  # at another: each difference, and status 1
    python -m benchmarks.same_numbers before.json --checkpoint cut_off  # keeps runs that were cut off, and
    python -m benchmarks.same_numbers after.json --resume-from cut_off --against before.json  # goes on with them

Every case is a command (`rlhf-fast VERB`) or a script with a `PPOTrainer`, on random models of two layers made here,
with one thread. Its record holds what a user gets: the numbers of metrics.jsonl and results but for times and memory,
rollouts and responses, and a digest of every saved tensor. The numbers are those of one machine and one version of
torch; another instruction set sums in another order.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import random
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from rlhf_fast import PPOConfig, PPOTrainer
from rlhf_fast.cli import main as command_line

Record = dict[str, Any]
"""From what a number is to the number, or to dtype, shape and digest of a tensor."""

WORDS, EOS = 97, 2
SIZES: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2, "tie_word_embeddings": False,
    "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS,
}  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen3": SIZES | {"head_dim": 8},
    "gemma2": SIZES | {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gpt2": {
        "vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
        "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": EOS,
    },
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)

# Four steps each, with a checkpoint after the second.
STAGE: dict[str, Any] = {
    "use_cpu": True, "disable_tqdm": True, "dtype": "float32", "seed": 3, "learning_rate": 1e-2, "warmup_steps": 1,
    "lr_scheduler_type": "cosine", "save_steps": 2, "per_device_train_batch_size": 6,
}  # fmt: skip
SFT = STAGE | {"model_name_or_path": "llama", "dataset_name": "demonstrations.jsonl", "num_train_epochs": 2}
REWARD = STAGE | {
    "model_name_or_path": "sft_adapter", "dataset_name": "comparisons.jsonl", "num_train_epochs": 2,
    "eval_dataset_name": "comparisons.jsonl", "normalise_samples": 4, "response_length": 4,
}  # fmt: skip
PPO = STAGE | {
    "sft_model_path": "sft_adapter", "reward_model_path": "reward_adapter", "dataset_name": "demonstrations.jsonl",
    "total_episodes": 24, "response_length": 6, "temperature": 1.0, "num_ppo_epochs": 2,
}  # fmt: skip
EVEN = {"reward_model_path": None, "reward_funcs": ["benchmarks.same_numbers:even"]}
SAMPLE = {"use_cpu": True, "dtype": "float32", "response_length": 6, "temperature": 1.0, "seed": 3}
PACKED = {"max_tokens_per_micro_batch": 24}

COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", SFT | {"eval_dataset_name": "demonstrations.jsonl"}),
    "sft bfloat16": ("sft", SFT | {"dtype": "bfloat16"}),
    "sft of all weights": ("sft", SFT | {"use_peft": False}),
    "sft of all weights, gpt2": ("sft", SFT | {"use_peft": False, "model_name_or_path": "gpt2"}),
    "sft gemma2": ("sft", SFT | {"model_name_or_path": "gemma2"}),
    "sft conversations": ("sft", SFT | {"dataset_name": "conversations.jsonl", "weight_decay": 0.1}),
    "sft last layer, micro-batches": ("sft", SFT | PACKED | {"lora_layers": [1], "gradient_accumulation_steps": 2}),
    "sft q_proj, activation checkpointing": (
        "sft", SFT | {"activation_checkpointing": True, "lora_target_modules": ["q_proj"]},
    ),
    "reward": ("reward", REWARD),
    "reward bfloat16, from the base": ("reward", REWARD | {"dtype": "bfloat16", "model_name_or_path": "llama"}),
    "reward micro-batches, not normalised": ("reward", REWARD | PACKED | {"normalise": False}),
    "ppo critic adapter": ("ppo", PPO),
    "ppo critic policy_head": ("ppo", PPO | {"critic": "policy_head"}),
    "ppo critic reference_mlp": ("ppo", PPO | {"critic": "reference_mlp"}),
    "ppo bfloat16": ("ppo", PPO | {"dtype": "bfloat16"}),
    "ppo of all weights": ("ppo", PPO | {"use_peft": False, "sft_model_path": "llama"}),
    "ppo of all weights, policy_head": (
        "ppo", PPO | EVEN | {"use_peft": False, "sft_model_path": "llama", "critic": "policy_head"},
    ),
    "ppo classifier": ("ppo", PPO | {"reward_model_path": "classifier"}),
    "ppo function": ("ppo", PPO | EVEN),
    "ppo function and reward model": ("ppo", PPO | {"reward_funcs": EVEN["reward_funcs"], "reward_weights": [0.5]}),
    "ppo shaping": (
        "ppo", PPO | EVEN | {
            "whiten_rewards": True, "whiten_ddof": 0, "missing_eos_penalty": 1.0, "score_at": "eos+1", "gamma": 0.98,
            "entropy_coef": 0.01, "dual_clip": 3.0, "log_ratio_clamp": 5.0, "kl_target": 1.0, "kl_horizon": 20,
        },
    ),
    "ppo bootstrap_truncated, sampled": (
        "ppo", PPO | {"bootstrap_truncated": True, "old_logprobs": "sampled", "kl_coef": 0, "kl_estimator": "exact"},
    ),
    "ppo target_kl, stop strings": ("ppo", PPO | {"target_kl": 1e-4, "stop": ["w7", "w9"]}),
    "ppo preset trl, k3": ("ppo", PPO | EVEN | {"preset": "trl", "kl_estimator": "k3", "stop_token": "none"}),
    "ppo preset openrlhf": ("ppo", PPO | {"preset": "openrlhf"}),
    "ppo preset verl": ("ppo", PPO | {"preset": "verl"}),
    "ppo micro-batches, minibatches": (
        "ppo", PPO | PACKED | {
            "num_mini_batches": 3, "max_rollout_batch": 2, "gradient_accumulation_steps": 2, "loss_mean": "micro",
            "per_device_train_batch_size": 3,
        },
    ),
    "ppo last layer": ("ppo", PPO | {"lora_layers": [1]}),
    "ppo activation checkpointing": ("ppo", PPO | {"activation_checkpointing": True}),
    "ppo qwen3, conversations": (
        "ppo", PPO | EVEN | {"sft_model_path": "qwen3", "dataset_name": "conversations.jsonl"},
    ),
    "generate": ("generate", SAMPLE | {"model_path": "sft_adapter", "dataset_name": "demonstrations.jsonl"}),
    "generate top_k, top_p, stop": (
        "generate", SAMPLE | {
            "model_path": "llama", "prompts": ["w9 w10", "w7"], "num_responses": 3, "top_k": 40, "top_p": 0.9,
            "stop": ["w7"],
        },
    ),
    "generate greedy, gemma2": ("generate", SAMPLE | {"model_path": "gemma2", "prompts": ["w9"], "temperature": 0}),
    "evaluate": (
        "evaluate", SAMPLE | {
            "model_path": "sft_adapter", "dataset_name": "demonstrations.jsonl",
            "reward_model_paths": ["reward_adapter", "classifier"], "reward_funcs": EVEN["reward_funcs"],
        },
    ),
    "export": ("export", {"model_path": "sft_adapter", "dtype": "float32"}),
    "export reward adapter": ("export", {"model_path": "reward_adapter"}),
    # each stage on what the one before it wrote
    "chain sft": ("sft", SFT),
    "chain reward": ("reward", REWARD | {"model_name_or_path": "chain sft"}),
    "chain ppo": ("ppo", PPO | {"sft_model_path": "chain sft", "reward_model_path": "chain reward"}),
    "chain evaluate": (
        "evaluate", SAMPLE | {
            "model_path": "chain ppo", "baseline_path": "chain sft", "dataset_name": "demonstrations.jsonl",
            "reward_model_paths": ["chain reward"],
        },
    ),
    "chain export": ("export", {"model_path": "chain ppo"}),
}  # fmt: skip
"""From a case to its verb and options; its output has its name."""

TWO = {"per_device_train_batch_size": 3, "ddp_timeout": 60}
IN_TWO: dict[str, tuple[str, dict[str, Any]]] = {
    "two processes: sft": ("sft", SFT | TWO),
    "two processes: sft, shard_base": ("sft", SFT | TWO | PACKED | {"shard_base": True}),
    "two processes: reward": ("reward", REWARD | TWO),
    "two processes: ppo": ("ppo", PPO | TWO | PACKED | {"num_mini_batches": 2, "whiten_rewards": True}),
    "two processes: ppo, policy_head": ("ppo", PPO | EVEN | TWO | {"critic": "policy_head"}),
    "two processes: ppo, shard_base": ("ppo", PPO | TWO | {"shard_base": True}),
    "two processes: ppo of all weights": ("ppo", PPO | TWO | {"use_peft": False, "sft_model_path": "llama"}),
}

CUT_OFF: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", SFT),
    "reward": ("reward", REWARD),
    "ppo": ("ppo", PPO | {"num_mini_batches": 2, "kl_target": 1.0, "kl_horizon": 20, "critic": "reference_mlp"}),
}
"""Runs whose checkpoint after the second step is gone on with, in another folder."""
STOPPED = PPO | EVEN | {"num_mini_batches": 2, "reward_funcs": ["benchmarks.same_numbers:stopping"]}
CALLS = "CALLS_BEFORE_STOP"
TIMES = ("seconds", "memory", "eps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="The JSON file to write.")
    parser.add_argument("--against", type=Path, help="An earlier record: print each difference, end with 1 for any.")
    parser.add_argument("--checkpoint", type=Path, help="A new folder: keep models, data and the runs cut off there.")
    parser.add_argument("--resume-from", type=Path, help="Such a folder: go on with its runs, and take no other case.")
    given = parser.parse_args()
    earlier = given.against and json.loads(given.against.read_text())
    if given.checkpoint and given.checkpoint.exists():
        parser.error(f"--checkpoint {given.checkpoint} is there already; give a new folder.")
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # of the processes to come
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if given.resume_from:
            shutil.copytree(given.resume_from, folder, dirs_exist_ok=True)
        here = Path.cwd()
        os.chdir(folder)  # checkpoints then hold no path of this run's folder
        try:
            cases = take_all(resuming=given.resume_from is not None)
        finally:
            os.chdir(here)
        if given.checkpoint:
            shutil.copytree(folder, given.checkpoint, ignore=shutil.ignore_patterns(*cases))
    given.record.write_text(json.dumps(cases, indent=1))
    failed = [f"{case}: failed: {record['failed']}" for case, record in cases.items() if "failed" in record]
    print(*failed, sep="\n", end="\n" if failed else "", file=sys.stderr)
    if earlier is None:
        return 1 if failed else 0
    wanted = {case: record for case, record in earlier.items() if case in cases or not given.resume_from}
    found = differences(wanted, cases)
    print(*found, f"{len(found)} differences in {len(cases)} cases", sep="\n")
    return 1 if found or failed else 0


def take_all(*, resuming: bool = False) -> dict[str, Record]:
    """From each case to its record, in the working folder. resuming: only the runs that were cut off in it."""
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "machine": platform.machine()}
    cases: dict[str, Record] = {"environment": about | {"instructions": torch.backends.cpu.get_cpu_capability()}}
    if not resuming:
        cases["inputs"] = take("inputs", make_inputs)
        cases |= {case: take(case, partial(command, case, *asked)) for case, asked in COMMANDS.items()}
        cases |= {case: take(case, partial(script, case, **given())) for case, given in TRAINERS.items()}
        cases |= in_two_processes()
        cases["cut off"] = take("cut off", cut_off)
    for case, (verb, options) in CUT_OFF.items():
        options = options | {"resume": f"cut off {case}/checkpoint-2"}
        cases[f"resumed {case}"] = take(f"resumed {case}", partial(command, f"resumed {case}", verb, options))
    shutil.copytree("cut off by a signal", "resumed after a signal")
    resume = partial(command, "resumed after a signal", "ppo", STOPPED | {"resume": "auto"})
    cases["resumed after a signal"] = take("resumed after a signal", resume)
    resume = partial(script, "resumed trainer", resume="cut off trainer/checkpoint-2", **peft_trainer())
    return cases | {"resumed trainer": take("resumed trainer", resume)}


def take(case: str, run: Callable[[], Record | None]) -> Record:
    """What `run` leaves in the folder `case`, with what it returns; or the one entry "failed"."""
    if os.environ.get("RANK", "0") == "0":
        print(case, file=sys.stderr)
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)  # checkpoints hold the states of all three
    shown = io.StringIO()
    try:
        with redirect_stdout(shown), redirect_stderr(shown):
            more = run() or {}
        return more | dict(outcome(Path(case)))
    except Exception as error:  # the other cases are taken all the same, and the record says it
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def command(case: str, verb: str, options: dict[str, Any], status: int = 0) -> None:
    """`rlhf-fast VERB --field value ...`, with its output in `case`; a field that is None is left out. Raises
    RuntimeError with the last line that it printed where it ends with another status."""
    where = {"output_file": f"{case}/responses.jsonl"} if verb == "generate" else {"output_dir": case}
    arguments = [verb]
    for field, value in (options | where).items():
        if value is not None:
            arguments += [f"--{field}", *map(str, value if isinstance(value, list) else [value])]
    with redirect_stderr(io.StringIO()) as shown:
        got = command_line(arguments)
    if got != status:
        raise RuntimeError(f"status {got}: {(shown.getvalue().splitlines() or ['nothing was said'])[-1]}")


def outcome(folder: Path) -> Iterator[tuple[str, Any]]:
    """The numbers and digests of all files that a run left in `folder`, its checkpoints included."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        file = path.relative_to(folder).as_posix()
        if path.name == "state.safetensors":  # a run's own: the names of its tensors are nobody's business
            digests = sorted(digest(x) for x in load_file(path).values())
            yield f"{file} {len(digests)} tensors", hashlib.sha256("".join(digests).encode()).hexdigest()
        elif path.suffix == ".safetensors":
            yield from tensors(file, load_file(path))
        elif path.suffix == ".jsonl":
            for i, line in enumerate(path.read_text().splitlines(), start=1):
                yield from numbers(f"{file}:{i}", json.loads(line))
        elif path.name in ("evaluation.json", "reward_model.json"):
            yield from numbers(file, json.loads(path.read_text()))


def numbers(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of what JSON holds, but for times and memory."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key not in TIMES:
                yield from numbers(f"{name} {key}", item)
    else:
        yield name, value


def tensors(name: str, named: dict[str, Tensor]) -> Iterator[tuple[str, str]]:
    for key, x in named.items():
        yield f"{name} {key}", digest(x)


def digest(x: Tensor) -> str:
    """dtype, shape and SHA-256 of the bytes, e.g. `float32 [2, 3] 9f86d0...`."""
    flat = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)} {hashlib.sha256(flat.numpy()).hexdigest()}"


def differences(before: dict[str, Record], after: dict[str, Record]) -> list[str]:
    """A line for each number that is not the same to the last bit, or is in one of two sets of cases only."""
    lines = []
    for case in before | after:
        old, new = before.get(case), after.get(case)
        if old is None or new is None:
            lines.append(f"{case}: only {'before' if new is None else 'after'}")
            continue
        failure = [name for name in old | new if name == "failed"]  # says all there is to say of a case
        for name in failure or old | new:  # as JSON, where 1 is not 1.0, 0.0 not -0.0, and NaN is NaN
            values = [json.dumps(record[name]) if name in record else "absent" for record in (old, new)]
            if values[0] != values[1]:
                lines.append(f"{case}: {name}: {values[0]} before, {values[1]} after")
    return lines


def even(prompts: list[str], responses: list[str], response_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that the ids themselves decide: the share of even ones, and a little for each."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) + 0.001 * sum(ids) for ids in response_ids]


def stopping(prompts: list[str], responses: list[str], response_ids: list[list[int]], **columns: Any) -> list[float]:
    """The same; at the call that the environment names, the run is asked to stop."""
    calls = os.environ[CALLS] = str(int(os.environ.get(CALLS, 0)) - 1)
    if calls == "0":
        signal.raise_signal(signal.SIGTERM)
    return even(prompts, responses, response_ids)


def cut_off() -> None:
    """Runs that are not finished: some with a checkpoint after two steps, and one stopped by a signal in its third."""
    for case, (verb, options) in CUT_OFF.items():
        command(f"cut off {case}", verb, options)
    os.environ[CALLS] = "3"
    command("cut off by a signal", "ppo", STOPPED, status=128 + signal.SIGTERM)
    script("cut off trainer", **peft_trainer())


def in_two_processes() -> dict[str, Record]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_in_two_processes, (port,), nprocs=2)
    return json.loads(Path("two processes.json").read_text())


def _in_two_processes(rank: int, port: int) -> None:
    """In a process of its own: all cases, one after the other, over one connection."""
    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in world.items()} | {"MASTER_ADDR": "127.0.0.1"}
    torch.set_num_threads(1)
    cases = {case: take(case, partial(command, case, *asked)) for case, asked in IN_TWO.items()}
    if rank == 0:
        Path("two processes.json").write_text(json.dumps(cases))


def script(case: str, *, resume: str | None = None, options: dict[str, Any], **given: Any) -> Record:
    """A run of `PPOTrainer` on objects; returns an evaluation, completions, and the weights of what was handed over."""
    settings = {k: v for k, v in STAGE.items() if k != "dtype"} | {
        "output_dir": case, "total_episodes": 24, "response_length": 6, "temperature": 1.0, "num_ppo_epochs": 2,
        "report_to": "none", "num_sample_generations": 0, "stop_token": "eos", "save_total_limit": None,
    }  # fmt: skip
    rows = [{"input_ids": [3 + (7 * i + j) % 90 for j in range(2 + i % 4)]} for i in range(12)]
    trainer = PPOTrainer(
        PPOConfig(**(settings | options)), PreTrainedTokenizerFast.from_pretrained("llama"),
        train_dataset=rows, eval_dataset=rows[:3], **given,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    out = dict(numbers("evaluate", trainer.evaluate()))
    out |= numbers("generate_completions", [vars(one) for one in trainer.generate_completions()])
    for role, model in given.items():
        if isinstance(model, torch.nn.Module):
            out |= tensors(role, model.state_dict())
    return out


def objects_trainer() -> dict[str, Any]:
    """Four models as TRL's script has them, all weights trained."""
    policy, classifier = AutoModelForCausalLM.from_pretrained, AutoModelForSequenceClassification.from_pretrained
    return {
        "model": policy("llama"), "ref_model": policy("llama"),
        "reward_model": classifier("classifier"), "value_model": classifier("classifier"),
        "options": {"missing_eos_penalty": 1.0, "whiten_rewards": True},
    }  # fmt: skip


def peft_trainer() -> dict[str, Any]:
    """An adapter over the policy, a function as reward, a critic of the trainer's own, evaluations as it goes."""
    return {
        "model": AutoModelForCausalLM.from_pretrained("llama"), "ref_model": None, "reward_model": even,
        "peft_config": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        "options": {
            "preset": "rlhf_fast", "num_mini_batches": 2, "gradient_accumulation_steps": 2, "kl_target": 1.0,
            "per_device_train_batch_size": 3, "eval_strategy": "steps", "eval_steps": 2,
        },
    }  # fmt: skip


TRAINERS = {"trainer with four models": objects_trainer, "trainer with an adapter": peft_trainer}


def make_inputs() -> Record:
    """Models, adapters as PEFT writes them, and data, in the working folder; returns their record."""
    tokenizer = make_tokenizer()
    for base, sizes in BASES.items():
        torch.manual_seed(len(base))
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(base, **sizes))
        with torch.no_grad():
            model.get_output_embeddings().weight[EOS].mul_(3)  # some responses end before their budget
        model.save_pretrained(base)
        tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_pretrained("llama")
    scorer = AutoModelForSequenceClassification.from_pretrained("llama", num_labels=1)
    scorer.score.weight.data.normal_()
    scorer.save_pretrained("classifier")
    tokenizer.save_pretrained("classifier")
    for folder, kind, model in (("sft_adapter", "CAUSAL_LM", policy), ("reward_adapter", "SEQ_CLS", scorer)):
        adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type=kind))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    words = [f"w{7 + i % 60} w{8 + i * i % 60}" for i in range(36)]
    write("demonstrations", [{"prompt": words[i], "completion": f"{words[i + 12]} {words[i + 24]}"} for i in range(12)])
    write(
        "conversations", [{"messages": [turn("user", words[i]), turn("assistant", words[i + 12])]} for i in range(12)]
    )
    write("comparisons", [
        {"prompt": words[i], "responses": [words[i + 12], f"{words[i + 24]} w9", "w8"], "ranks": [1, 2, 3]}
        for i in range(12)
    ])  # fmt: skip
    return dict(outcome(Path()))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word is a token."""
    words = ["<unk>", "<bos>", "<eos>", "user", "assistant", *(f"w{i}" for i in range(WORDS - 5))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    own = {"unk_token": "<unk>", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE, **own)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
