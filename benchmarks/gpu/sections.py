"""What `python -m benchmarks.gpu` runs and measures, section by section, in order of what matters first.

A section gets a `Bench` and reports rows of numbers as it goes, so that one that is cut off has told something.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

import rlhf_kernels as kernels
from benchmarks.gpu.bench import GIB, Bench
from benchmarks.gpu.ppo import Phases
from rlhf_fast.bench.models import SHAPES, build_ppo, shared_model
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rollout.engine import Engine, generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.rollout.step import UNREAD
from rlhf_fast.runtime import phases

ROOT = Path(__file__).parent.parent.parent


def machine(bench: Bench) -> None:
    """Versions, and what the device can do at most."""
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        pass
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "cpu"
    bench.tell("versions", device=name, python=sys.version.split()[0], **versions)
    side = 64 if bench.dry else 8192
    a, b = (torch.randn(side, side, device=bench.device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    seconds = bench.seconds(lambda: [torch.mm(a, b, out=out) for _ in range(10)]) / 10
    bench.tell("product in bfloat16", side=side, tflops=2 * side**3 / seconds / 1e12)
    source, target = (torch.ones(1 << (10 if bench.dry else 30), device=bench.device) for _ in range(2))
    seconds = bench.seconds(lambda: target.copy_(source))
    bench.tell("copy, bytes read and written", tb_a_second=2 * source.nbytes / seconds / 1e12)
    small = torch.ones(8, device=bench.device)
    bench.tell("launch", microseconds=1e6 * bench.seconds(lambda: [small.add_(1) for _ in range(1000)]) / 1000)


def pipeline(bench: Bench) -> None:
    """SFT, a reward model, PPO, generation and evaluation on a tiny model; log-probs beside those of the CPU."""
    command = [sys.executable, "-m", "tests.smoke", *(["--cpu"] if bench.dry else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    bench.tell(
        "every stage", status=done.returncode, end=(done.stdout + done.stderr)[-1500:] if done.returncode else ""
    )
    if done.returncode:
        raise RuntimeError("a stage failed")


def agreement(bench: Bench) -> None:
    """Log-probs of a model on the device beside those of the same model on the CPU, in float32."""
    reference = shared_model("toy", torch.device("cpu"), "policy")
    for parameter in reference.base.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # larger than a model begins with: its log-probs differ by token
    sequences = [torch.randint(3, 512, (n,)).tolist() for n in (5, 70, 33, 1, 200)]
    labels = [[-100, *sequence[1:]] for sequence in sequences]
    expected = Policy(reference, "policy").logprobs(Packed.from_sequences(sequences, labels)).logprobs
    reference.base.to(bench.device)
    packed = Packed.from_sequences(sequences, labels, bench.device)
    found = Policy(reference, "policy").logprobs(packed).logprobs
    error = float((found.detach().cpu() - expected.detach()).abs().max())
    mean = float(expected.mean().detach())
    bench.tell("log-probs, float32, device against CPU", on=str(found.device), error=error, mean=mean)
    if error > 1e-4:
        raise RuntimeError(f"log-probs differ by {error}")
    sampling = Sampling(24, (2,))
    on_device = generate(Policy(reference, "policy"), sequences, sampling, seeds=[7, 8, 9, 10, 11])
    reference.base.to("cpu")
    on_cpu = generate(Policy(reference, "policy"), sequences, sampling, seeds=[7, 8, 9, 10, 11])
    same = sum(a.tokens == b.tokens for a, b in zip(on_device, on_cpu, strict=True))
    bench.tell("responses, float32, equal to the CPU's", equal=same, of=len(on_cpu))


def _in_parallel() -> list[str]:
    """Several processes where pytest-xdist is: most of the time goes to the compilation of kernels."""
    return ["-n", "12"] if importlib.util.find_spec("xdist") else []


def tests(bench: Bench) -> None:
    """The tests that need a GPU."""
    if bench.dry:
        return bench.tell("tests marked gpu are left out of a dry run")
    failed = []
    for path in GPU_TESTS:  # one by one, so that a deadline leaves what came before
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--durations=5", *_in_parallel(), path]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        bench.tell(f"tests marked gpu of {path}", exit=done.returncode, end=done.stdout[-2000:])
        failed += [path] if done.returncode else []
    if failed:
        raise RuntimeError(f"tests failed in {', '.join(failed)}")


GPU_TESTS = (  # by path: the whole tree needs packages that such a machine may lack
    "tests/gpu/test_rollout.py", "tests/gpu/test_attention.py", "tests/kernels/triton/test_sample.py",
    "tests/kernels/triton/test_decode_attention.py", "tests/kernels/triton/test_layers.py",
    "tests/kernels/triton/test_columns.py", "tests/kernels/triton/test_ppo_loss.py",
    "tests/kernels/triton/test_policy_reference.py", "tests/kernels/triton/test_logprobs.py",
    "tests/kernels/cuda/test_cuda_logprobs.py", "tests/kernels/cuda/test_cuda_advantages.py",
)  # fmt: skip


def decode(bench: Bench) -> None:
    """A decode step of many sequences, with LoRA, as a rollout takes it."""
    for name in bench.sizes("1B", "8B"):
        shared = shared_model(name, bench.device, "policy")
        for rows in (2,) if bench.dry else (16, 64, 256) if name == "1B" else (64,):
            _decode(bench, name, shared, rows)
        del shared
        bench.reset_peak()


def _decode(bench: Bench, name: str, shared: SharedModel, rows: int) -> None:
    prompt, new = (5, 3) if bench.dry else (512, 128)
    shape, policy = SHAPES[name], Policy(shared, "policy")
    prompts = torch.randint(3, shape.vocabulary, (rows, prompt)).tolist()

    @torch.no_grad()
    def rollout(new: int) -> Engine:
        engine = Engine(policy, prompts, Sampling(new, ()), list(range(rows)), rows, 16384)
        engine.run()
        return engine

    one = bench.seconds(lambda: rollout(1), rounds=2)
    some = bench.seconds(lambda: rollout(1 + UNREAD), rounds=2)  # holds the capture of its graph, where there is one
    many = bench.seconds(lambda: rollout(1 + UNREAD + new), rounds=2)
    step = (many - some) / new
    stepper = rollout(2).stepper
    cache = rows * (prompt + new / 2) * 2 * shape.layers * shape.kv_heads * (shape.hidden // shape.heads) * 2
    read = 2 * (shape.layer_weights + shape.head_weights) + cache
    bench.tell(
        f"decode {name}, {rows} rows of {prompt} tokens and more", ms_a_step=1e3 * step, tokens_a_second=rows / step,
        gib_a_step=read / GIB, tb_a_second=read / step / 1e12, prefill_ms=1e3 * one,
        capture_ms=1e3 * (some - one - UNREAD * step), graph=stepper.refused or "yes",
    )  # fmt: skip
    if rows in (2, 64) and name != "8B":
        bench.profile(
            f"profile of {new} decode steps {name}, {rows} rows, with the prefill", lambda: rollout(1 + new), new
        )


def update(bench: Bench) -> None:
    """Forward and backward of a LoRA policy over a micro-batch: what PPO's update does for each."""
    for name in bench.sizes("1B", "8B"):
        shared = shared_model(name, bench.device, "policy")
        for length, count in ((9, 3),) if bench.dry else ((1024, 1), (1024, 16), (128, 128)):
            _update(bench, name, shared, length, count)
        del shared
        bench.reset_peak()


def _update(bench: Bench, name: str, shared: SharedModel, length: int, count: int) -> None:
    shape, policy, tokens = SHAPES[name], Policy(shared, "policy"), length * count
    sequences = torch.randint(3, shape.vocabulary, (count, length)).tolist()
    half = length // 2  # the prompt, which the head does not read
    packed = Packed.from_sequences(sequences, [[-100] * half + s[half:] for s in sequences], bench.device)

    def step() -> None:
        policy.logprobs(packed).logprobs.sum().backward()

    bench.reset_peak()
    seconds = bench.seconds(step, rounds=2)
    attention = 2 * 2 * shape.layers * shape.hidden * count * length**2 / 2  # products with keys and values, forward
    flops = 4 * shape.layer_weights * tokens + 3.5 * attention + 4 * shape.head_weights * len(packed.rows)
    bench.tell(
        f"update {name}, {count} x {length} tokens", ms=1e3 * seconds, tflops=flops / seconds / 1e12,
        tokens_a_second=tokens / seconds, peak_gib=bench.peak(),
    )  # fmt: skip
    if (length, count) in ((1024, 16), (9, 3)):
        bench.profile(f"profile of an update {name}, {count} x {length}", step)


def iteration(bench: Bench) -> None:
    """One PPO iteration with critic and reward model on the shared base: seconds and peak memory by phase."""
    for name in bench.sizes("8B", "1B"):
        rows, prompt, new = (2, 5, 4) if bench.dry else (16, 512, 512)
        bench.reset_peak()
        shared = shared_model(name, bench.device, "policy", "critic", "reward")
        shared.checkpoint_activations()
        weights = bench.peak()
        with tempfile.TemporaryDirectory() as folder:
            ppo = build_ppo(shared, folder, rows=rows, prompt=prompt, new=new)
            for index in range(2):
                bench.reset_peak()
                found = Phases(bench)
                start = time.perf_counter()
                with phases.listen(found):
                    ppo.step()
                bench.wait()
                bench.tell(
                    f"PPO iteration {index + 1} of {name}, {rows} rows, {prompt} + {new} tokens",
                    seconds=time.perf_counter() - start, weights_gib=weights, **found.numbers(),
                )  # fmt: skip
        del shared, ppo
        bench.reset_peak()


def has_cuda(bench: Bench) -> bool:
    """Whether the kernels of csrc/cuda can run; tells why where they cannot. They are built here, on first use."""
    rewards, values = torch.zeros(2, 1, device=bench.device)
    offsets = torch.tensor([0, 1], dtype=torch.int32, device=bench.device)
    try:
        kernels.gae_(rewards, values, offsets, gamma=1.0, lam=1.0, backend="cuda")
    except (ValueError, RuntimeError) as error:
        bench.tell("no rows of CUDA C++", reason=str(error)[:500])
        return False
    return True


def logprobs(bench: Bench) -> None:
    """The log-prob kernels beside the bare product of their shape and torch's own way."""
    rows, hidden, vocabulary = (64, 64, 512) if bench.dry else (8192, 4096, 128256)
    x = torch.randn(rows, hidden, device=bench.device).bfloat16()
    weight = (torch.randn(vocabulary, hidden, device=bench.device) / hidden**0.5).bfloat16()
    labels = torch.randint(vocabulary, (rows,), device=bench.device)
    leaf = x.clone().requires_grad_()

    def plain(x: torch.Tensor) -> torch.Tensor:
        return log_softmax((x @ weight.t()).float(), -1).gather(1, labels[:, None]).squeeze(1)

    def ours(x: torch.Tensor, backend: str | None = None) -> torch.Tensor:
        return kernels.linear_logprobs(x, weight, labels, scored=rows, backend=backend).logprobs

    flops = 2.0 * rows * hidden * vocabulary
    variants: list[tuple[str, Callable[[], object], int]] = [
        ("bare product", lambda: x @ weight.t(), 1),
        ("log-probs, ours", lambda: ours(x), 1),
        ("log-probs, torch", lambda: plain(x), 1),
        ("log-probs and gradient, ours", lambda: ours(leaf).sum().backward(), 2),
        ("log-probs and gradient, torch", lambda: plain(leaf).sum().backward(), 2),
        ("policy and reference, exact KL, ours",
         lambda: kernels.policy_reference_logprobs(x, x, weight, labels, exact_kl=True), 2),
    ]  # fmt: skip
    if has_cuda(bench):
        variants += [
            ("log-probs, CUDA C++", lambda: ours(x, "cuda"), 1),
            ("log-probs and gradient, CUDA C++", lambda: ours(leaf, "cuda").sum().backward(), 2),
        ]
    for what, run, products in variants:
        bench.reset_peak()
        seconds = bench.seconds(run, rounds=5)
        bench.tell(what, ms=1e3 * seconds, tflops=products * flops / seconds / 1e12, peak_gib=bench.peak())


def columns(bench: Bench) -> None:
    """Shaping, GAE, whitening and the PPO loss over a rollout's columns."""
    rows, length = (4, 8) if bench.dry else (256, 1024)
    columns = torch.randn(8, rows * length, device=bench.device)
    offsets = torch.arange(0, rows * length + 1, length, dtype=torch.int32, device=bench.device)
    settings: Any = {"cliprange": 0.2, "cliprange_value": 0.2, "vf_coef": 0.1}

    def estimate(backend: str | None = None) -> None:
        advantages = columns[0].clone()
        kernels.gae_(advantages, columns[1], offsets, gamma=0.99, lam=0.95, whiten=True, backend=backend)

    def loss() -> None:
        logprobs, values = columns[0].detach().requires_grad_(), columns[3].detach().requires_grad_()
        kernels.ppo_loss(logprobs, columns[1], columns[2], values, columns[4], columns[5], **settings).loss.backward()

    for name, backend in (("", None), *([(", CUDA C++", "cuda")] if has_cuda(bench) else [])):
        seconds = bench.seconds(partial(estimate, backend), rounds=20)
        bench.tell(f"gae_ and whitening, {rows} x {length}{name}", microseconds=1e6 * seconds)
    bench.tell(f"ppo_loss and gradient, {rows} x {length}", microseconds=1e6 * bench.seconds(loss, rounds=20))


@dataclass(frozen=True)
class Section:
    """seconds: its deadline, which is about twice what it takes. standard: part of a call that names no sections."""

    run: Callable[[Bench], None]
    seconds: float
    standard: bool = True


SECTIONS = {
    "machine": Section(machine, 30),
    "agreement": Section(agreement, 40),
    "decode": Section(decode, 80),
    "update": Section(update, 60),
    "logprobs": Section(logprobs, 30),
    "columns": Section(columns, 20),
    "iteration": Section(iteration, 70),
    "tests": Section(tests, 100),
    "pipeline": Section(pipeline, 100),
}
