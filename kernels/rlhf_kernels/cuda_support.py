"""What the CUDA C++ backends share: the library of `csrc/cuda`, built by nvcc on first use, and how it is called.

The sources know pointers and streams, not torch: nvcc makes one shared library of them for the device that is there,
and ctypes calls it. It is kept in the user's cache folder under a name that depends on the sources, the compiler and
the device, so that it is built once. These backends run only where they are named: see docs/kernels.md.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_kernels.op import Backend, imported_late

SOURCES = ("logprobs.cu", "advantages.cu")
FLAGS = ("-std=c++17", "-O3", "-fmad=false")  # a product and a sum are rounded apart, as in the tests on a CPU
_PACKAGED, _TREE = Path(__file__).parent / "csrc", Path(__file__).parents[2] / "csrc"

POINTER, INT, LONG, FLOAT, DOUBLE = (
    ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_double,
)  # fmt: skip
SIGNATURES = {
    "rlhf_score_rows": (*[POINTER] * 8, INT, LONG, INT, LONG, FLOAT, FLOAT, POINTER),
    "rlhf_gradient_rows": (*[POINTER] * 9, INT, LONG, INT, LONG, FLOAT, FLOAT, POINTER),
    "rlhf_gae": (*[POINTER] * 5, LONG, FLOAT, FLOAT, POINTER),
    "rlhf_gae_whiten": (*[POINTER] * 5, LONG, FLOAT, FLOAT, POINTER, POINTER, LONG, INT, DOUBLE, POINTER),
}
"""Of the functions of `csrc/cuda`, as their comments say; the last argument is the stream."""


def in_cuda(module: str, function: str) -> Backend[Any]:
    """The backend whose `function` is in `module`, beside a `refusal`."""

    return imported_late(module, function, cuda_refusal)


def cuda_refusal(a: Any) -> str | None:
    """Why CUDA C++ cannot take these arguments, or None: a tensor is not on CUDA, or there is no compiler."""
    devices = {name: value.device for name, value in zip(a._fields, a, strict=True) if isinstance(value, Tensor)}
    for name, device in devices.items():
        if device.type != "cuda":
            return f"{name} is on {device}, and it takes CUDA tensors"
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} {device}" for name, device in devices.items())
        return f"got {got}, and it takes tensors of one device"
    if find_nvcc() is None:
        return "nvcc was not found, which builds it: install the CUDA toolkit or set CUDA_HOME"
    return None


def call(function: str, device: torch.device, *arguments: Any) -> None:
    """Call a function of the library on the device's current stream; raises RuntimeError where CUDA refuses.

    A tensor is handed over by its address, and None as 0: the caller keeps them alive and contiguous.
    """
    given = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    with torch.cuda.device(device):
        run = library(torch.cuda.get_device_capability(device))
        error = getattr(run, function)(*given, torch.cuda.current_stream().cuda_stream)
    if error:
        raise RuntimeError(f"{function} failed with CUDA error {error}: {run.rlhf_error_text(error).decode()}")


@cache
def library(capability: tuple[int, int]) -> ctypes.CDLL:
    """The library for devices of a compute capability. Raises RuntimeError with nvcc's words if it does not compile."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc was not found: install the CUDA toolkit or set CUDA_HOME")
    arch = f"sm_{capability[0]}{capability[1]}"
    version = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    files = sorted(sources().glob("*.cu")) + sorted(sources().glob("*.h"))
    words = [version, arch, *FLAGS, *(path.read_text(encoding="utf-8") for path in files)]
    name = hashlib.sha256("\0".join(words).encode()).hexdigest()[:20]
    built = cache_folder() / f"{name}.so"
    if not built.exists():
        build([nvcc, *FLAGS, f"-arch={arch}", "-shared", "-Xcompiler", "-fPIC"], built)
    return load(built)


def build(compiler: list[str], target: Path) -> None:
    """Compile all sources into one shared library, which appears whole. Raises RuntimeError if they do not compile."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, target.name)
        files = [str(sources() / name) for name in SOURCES]
        command = [*compiler, f"-I{sources().parent}", "-o", str(made), *files]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"csrc/cuda does not compile: {' '.join(command)}\n{done.stderr[-3000:]}")
        os.replace(made, target)


def load(path: Path) -> ctypes.CDLL:
    """A built library, with the types of its functions."""
    loaded = ctypes.CDLL(str(path))
    for name, types in SIGNATURES.items():
        getattr(loaded, name).argtypes = types
    loaded.rlhf_error_text.restype = ctypes.c_char_p
    return loaded


def sources() -> Path:
    """The folder of the sources: in the package where it was installed from a wheel, else in the tree."""
    return (_PACKAGED if _PACKAGED.is_dir() else _TREE) / "cuda"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf_fast" / "cuda"


@cache
def find_nvcc() -> str | None:
    """CUDA's compiler: of CUDA_HOME, on the PATH, in /usr/local/cuda, or as a package of Python."""
    roots = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [Path(root, "bin", "nvcc") for root in roots if root]
    packages = sorted(Path(sysconfig.get_path("purelib"), "nvidia").glob("*/bin/nvcc"))
    on_path = shutil.which("nvcc")
    places = [*named, *([Path(on_path)] if on_path else []), Path("/usr/local/cuda/bin/nvcc"), *packages]
    return next((str(path) for path in places if os.access(path, os.X_OK)), None)
