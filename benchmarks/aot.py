"""Compiles every Triton and CUDA C++ kernel ahead of time, for GPUs that need not be here, and fails where one would
run badly.

    python -m benchmarks.aot                        # every form of every kernel, for every architecture
    python -m benchmarks.aot --arch 90 --only score
    python -m benchmarks.aot --only cuda            # those of csrc/cuda, by nvcc where it is found

Each form that the launch code can ask for (the VARIANTS of every Triton backend in the table of operations) is
compiled twice, with pointers and sizes aligned to 16 and not, and its machine code is read by the bundled cuobjdump.
The exit status is 1 where a kernel spills registers to the stack, needs more shared memory than the chip has, or lacks
the matrix instruction that its entry names (decode attention does; large products are left to the vendor's library). A
kernel of csrc/cuda must fit a processor at least twice besides, by its registers. Nothing is measured. It takes
minutes, and runs without TRITON_INTERPRET only.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import NamedTuple

import rlhf_kernels  # noqa: F401  # fills the table of operations
from rlhf_kernels import cuda_support
from rlhf_kernels.op import OPS
from rlhf_kernels.triton_support import OPTIONS, Variant

CUDA = "cuda"  # --only of the kernels in csrc/cuda
REGISTERS = 65536  # of a processor, on all of these architectures
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes per block, by architecture


class Usage(NamedTuple):
    """What one compiled kernel uses, and why that will not do, or None."""

    registers: int
    stack: int  # bytes per thread; above 0, registers are spilled
    shared: int  # bytes per block, what the chip reserves included
    fault: str | None


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel for GPUs that need not be here.")
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--only", help="The name of a kernel, such as score.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes that compile.")
    given = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        parser.error("TRITON_INTERPRET is set, and interpreted kernels do not compile: unset it")
    if given.only == CUDA:
        return int(show_cuda(given.arch) > 0)
    work = [
        (index, variant, arch, aligned)
        for index, variant in enumerate(variants())
        for arch, aligned in product(given.arch, (True, False))
        if given.only in (None, variant.name)
    ]
    if not work:
        parser.error(f"no kernel is called {given.only}: expected one of {sorted({v.name for v in variants()})}")
    print(f"{'kernel':<16} {'arch':>4}  {'regs':>4} {'stack':>5} {'shared':>6}  form")
    faults = 0
    with ProcessPoolExecutor(given.jobs) as pool:
        usages = pool.map(_usage_of, [(index, arch, aligned) for index, _, arch, aligned in work])
        for (_, variant, arch, aligned), used in zip(work, usages, strict=True):
            print(
                f"{variant.name:<16} {arch:>4}  {used.registers:>4} {used.stack:>5} {used.shared:>6}  "
                f"{form(variant)}{'' if aligned else ', unaligned'}{f'  FAULT: {used.fault}' if used.fault else ''}",
                flush=True,
            )
            faults += used.fault is not None
    count = Counter(variant.name for _, variant, _, _ in work)
    print(f"{len(work)} compiled ({', '.join(f'{n} {name}' for name, n in count.items())}); {faults} with a fault")
    if given.only is None:
        faults += show_cuda(given.arch)
    return int(faults > 0)


def triton_modules() -> list[str]:
    """The modules of kernels, once each where ops share one; naming them imports neither them nor Triton."""
    names = [op.backends["triton"].module for op in OPS.values() if "triton" in op.backends]
    return [name for name in dict.fromkeys(names) if name is not None]


def variants() -> Iterator[Variant]:
    """Every form of every kernel."""
    for module in triton_modules():
        yield from importlib.import_module(module).VARIANTS


def form(variant: Variant) -> str:
    """What tells a form from its kernel's other ones: the dtypes it reads or writes, and what it goes without."""
    types = sorted({t for t in variant.signature.values() if t.startswith("*")})
    absent = [f"no {name}" for name, value in variant.constants.items() if value is None]
    flags = [f"{name}={value}" for name, value in variant.constants.items() if isinstance(value, bool)]
    return ", ".join([" ".join(types), *flags, *absent])


def usage(variant: Variant, arch: int, *, aligned: bool) -> Usage:
    """Compile one form for sm_<arch> and judge it; a form that does not compile has a fault like any other."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    source = ASTSource(
        variant.kernel,
        {name: variant.signature.get(name, "constexpr") for name in names},
        variant.constants,
        _attributes(variant) if aligned else {},
    )
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **OPTIONS}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    except triton.CompilationError as error:
        return Usage(0, 0, 0, f"does not compile: {error}")
    registers, stack, static = resources(compiled.asm["cubin"])
    shared = static + compiled.metadata.shared  # Triton's own is asked for at the launch, so the cubin does not say
    return Usage(registers, stack, shared, fault(variant, arch, stack, shared, compiled.asm["ptx"]))


def fault(variant: Variant, arch: int, stack: int, shared: int, ptx: str) -> str | None:
    """Why a compiled kernel will not do, or None."""
    if stack > 0:
        return f"spills {stack} bytes a thread to the stack"
    if shared > SHARED_LIMIT[arch]:
        return f"needs {shared} bytes of shared memory, and sm_{arch} has {SHARED_LIMIT[arch]}"
    if variant.instruction is not None and re.search(variant.instruction, ptx) is None:
        return f"has no {variant.instruction} in its PTX"
    return None


def resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers a thread, stack bytes a thread and fixed shared bytes a block of a cubin's only kernel."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", report)
    if len(found) != 1:
        raise ValueError(f"cuobjdump -res-usage told of {len(found)} kernels, expected one: {report}")
    registers, stack, shared = map(int, found[0])
    return registers, stack, shared


def show_cuda(architectures: list[int]) -> int:
    """Compile csrc/cuda for each architecture and print what its kernels use; returns how many have a fault."""
    nvcc = cuda_support.find_nvcc()
    if nvcc is None:
        print("csrc/cuda is not compiled: nvcc was not found (set CUDA_HOME)")
        return 0
    kernels = faults = 0
    for arch, source in product(architectures, cuda_support.SOURCES):
        for form, used in cuda_usages(nvcc, cuda_support.sources() / source, arch).items():
            kernels, faults = kernels + 1, faults + (used.fault is not None)
            fault = f"  FAULT: {used.fault}" if used.fault else ""
            print(f"{'csrc/cuda':<16} {arch:>4}  {used.registers:>4} {used.stack:>5} {used.shared:>6}  {form}{fault}")
    print(f"{kernels} compiled by nvcc; {faults} with a fault")
    return faults


def cuda_usages(nvcc: str, source: Path, arch: int) -> dict[str, Usage]:
    """What each kernel of a .cu file uses, by its name and template argument, and why that will not do."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *cuda_support.FLAGS, f"-I{source.parents[1]}", f"-arch=sm_{arch}", "-cubin", "-Xptxas", "-v"]
        command += ["-o", str(Path(folder, "kernels.cubin")), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {source.name: Usage(0, 0, 0, f"does not compile: {done.stderr[-2000:]}")}
    (threads,) = map(int, re.findall(r"constexpr int kThreads = (\d+);", source.read_text()))
    usages = {}
    for name, told in re.findall(r"Compiling entry function '(\w+)'(.*?Used [^\n]*)", done.stderr, re.DOTALL):
        registers, stack = _told(told, r"Used (\d+) registers"), _told(told, r"(\d+) bytes stack frame")
        shared = _told(told, r"(\d+) bytes smem")
        usages[_demangled(name)] = Usage(registers, stack, shared, cuda_fault(arch, threads, registers, stack, shared))
    return usages


def cuda_fault(arch: int, threads: int, registers: int, stack: int, shared: int) -> str | None:
    """Why a kernel of csrc/cuda will not do, or None."""
    if stack > 0:
        return f"spills {stack} bytes a thread to the stack"
    if 2 * shared > SHARED_LIMIT[arch]:
        return (
            f"needs {shared} bytes of shared memory, and twice that has to fit in the {SHARED_LIMIT[arch]} of sm_{arch}"
        )
    if 2 * threads * registers > REGISTERS:
        return f"needs {registers} registers a thread, with which two blocks of {threads} do not fit a processor"
    return None


def _told(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _demangled(name: str) -> str:
    """score_rows<Bfloat16> of its linker name."""
    found = re.search(r"\d([a-z_]+)I(v|f|Lb0E|Lb1E|NS\d_\d+(\w+?)E)E", name)
    if found is None:
        return name
    kinds = {"v": "no gradient", "f": "float", "Lb0E": "false", "Lb1E": "true"}
    return f"{found[1]}<{kinds.get(found[2], found[3])}>"


def _attributes(variant: Variant) -> dict[tuple[int], list[list[object]]]:
    """Divisible by 16: the pointers, and the sizes that a launch may specialise on."""
    kernel = variant.kernel
    loose = {p.name for p in kernel.params if p.do_not_specialize or p.do_not_specialize_on_alignment}
    aligned = [n for n, t in variant.signature.items() if (t.startswith("*") or t == "i32") and n not in loose]
    return {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}


def _usage_of(work: tuple[int, int, bool]) -> Usage:
    index, arch, aligned = work
    return usage(list(variants())[index], arch, aligned=aligned)


if __name__ == "__main__":
    sys.exit(main())
