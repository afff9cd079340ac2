"""The ahead-of-time gate: every Triton kernel compiles for every architecture without a spill, and faults are seen."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from benchmarks.aot import SHARED_LIMIT, cuda_fault, cuda_usages, fault, form, triton_modules, usage, variants
from rlhf_kernels import cuda_support
from rlhf_kernels.triton_support import Variant

ROOT = Path(__file__).parents[2]
compiles = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="interpreted kernels do not compile")
needs_nvcc = pytest.mark.skipif(cuda_support.find_nvcc() is None, reason="nvcc was not found")

SPILLING = '''
import triton
import triton.language as tl

@triton.jit
def kernel(x, BLOCK: tl.constexpr):
    """One warp holds all 16384 numbers, 512 for each thread, which has 255 registers."""
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.cumsum(tl.load(x + i), 0) + tl.load(x + BLOCK - 1 - i))
'''


def python(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "kernels"), str(ROOT)])
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_LIMIT)
@pytest.mark.parametrize("module", triton_modules())
def test_every_form_of_every_kernel_passes_for_every_architecture(module, arch):
    """A test for each, so that processes share them; Triton keeps what it compiled by the hash of all that counts."""
    forms = [(variant, aligned) for variant in importlib.import_module(module).VARIANTS for aligned in (True, False)]
    used = [(variant.name, form(variant), usage(variant, arch, aligned=aligned)) for variant, aligned in forms]
    assert used and [(name, what, one.fault) for name, what, one in used if one.fault] == []
    assert all(one.registers > 0 for *_, one in used)


@compiles
def test_every_kernel_has_a_form():
    kernels = {variant.name for variant in variants()}
    assert {"gae", "shape_rewards", "moments", "whiten", "ppo_loss", "score", "gradient", "compare"} <= kernels
    assert {"rms_norm", "rms_norm_backward", "rotary", "swiglu", "swiglu_backward"} <= kernels
    assert {"sample", "attend", "join"} <= kernels


@pytest.mark.slow
def test_the_command_counts_what_it_compiled():
    out = python("-m", "benchmarks.aot", "--only", "merge_moments", "--arch", "80", "90", "--jobs", "2")
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    assert out.stdout.endswith("\n4 compiled (4 merge_moments); 0 with a fault\n")


@compiles
@pytest.mark.slow
def test_a_kernel_that_spills_is_caught(tmp_path):
    script = tmp_path / "spilling.py"  # Triton reads a kernel's source from its file
    script.write_text(SPILLING)
    spec = importlib.util.spec_from_file_location("spilling", script)
    spilling = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(spilling)
    used = usage(Variant("spilling", spilling.kernel, {"x": "*fp32"}, {"BLOCK": 16384}, num_warps=1), 90, aligned=True)
    assert used.stack > 0 and used.fault == f"spills {used.stack} bytes a thread to the stack"


@pytest.mark.slow
def test_launches_pass_tritons_own_front_end():
    out = python("tests/kernels/triton/front_end.py")
    assert out.returncode == 0, out.stderr[-3000:]
    assert out.stdout == (
        "gae 1, shape_rewards 1, moments 2, merge_moments 1, whiten 1, ppo_loss 2, ppo_metrics 2, score 4, gradient 2, "
        "compare 2, rms_norm 2, rms_norm_backward 4, swiglu 3, swiglu_backward 3, rotary 2, "
        "sample 2, attend 2, join 2\n"
    )


def any_form(instruction=None):
    return Variant("any", None, {}, {}, num_warps=4, instruction=instruction)


@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_shared_memory_over_the_chips_limit_is_a_fault(arch):
    limit = SHARED_LIMIT[arch]
    assert fault(any_form(), arch, stack=0, shared=limit, ptx="") is None
    assert str(limit + 1) in fault(any_form(), arch, stack=0, shared=limit + 1, ptx="")


def test_a_missing_matrix_instruction_is_a_fault():
    assert fault(any_form("wgmma"), 90, stack=0, shared=0, ptx="wgmma.mma_async.sync.aligned") is None
    assert "wgmma" in fault(any_form("wgmma"), 90, stack=0, shared=0, ptx="fma.rn.f32")


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("arch", SHARED_LIMIT)
def test_every_cuda_kernel_passes_for_every_architecture(arch):
    used = {}
    for source in cuda_support.SOURCES:
        used |= cuda_usages(cuda_support.find_nvcc(), cuda_support.sources() / source, arch)
    types = ("float", "Bfloat16", "Float16")
    names = ["score_rows<no gradient>", *(f"{k}_rows<{t}>" for k in ("score", "gradient") for t in types)]
    assert sorted(used) == sorted([*names, "gae<false>", "gae<true>"])
    assert not {name: one.fault for name, one in used.items() if one.fault}
    assert all(20 < one.registers < 128 for one in used.values()), used
    assert all(one.shared == (192 if "score" in name or "true" in name else 0) for name, one in used.items()), used


SPILLING_CUDA = """
constexpr int kThreads = 1024;
__global__ void __launch_bounds__(kThreads) spilling(float* x) {
    float held[200];
    for (int i = 0; i < 200; ++i) held[i] = x[i * kThreads + threadIdx.x];
    __syncthreads();
    for (int i = 0; i < 200; ++i) x[i] = held[(i * 7 + int(x[i])) % 200];
}
"""


@needs_nvcc
@pytest.mark.slow
def test_a_cuda_kernel_that_spills_or_does_not_compile_is_caught(tmp_path):
    (tmp_path / "spilling.cu").write_text(SPILLING_CUDA)
    (used,) = cuda_usages(cuda_support.find_nvcc(), tmp_path / "spilling.cu", 90).values()
    assert used.stack >= 4 * 200 and used.fault.startswith(f"spills {used.stack} bytes")
    (tmp_path / "wrong.cu").write_text("__global__ void wrong() { nothing(); }")
    (used,) = cuda_usages(cuda_support.find_nvcc(), tmp_path / "wrong.cu", 90).values()
    assert used.fault.startswith("does not compile") and "nothing" in used.fault


def test_a_cuda_kernel_has_to_fit_a_processor_twice():
    assert cuda_fault(90, threads=512, registers=64, stack=0, shared=113 * 1024) is None
    assert "65 registers" in cuda_fault(90, threads=512, registers=65, stack=0, shared=0)
    assert "shared memory" in cuda_fault(120, threads=32, registers=32, stack=0, shared=50 * 1024)
