"""How the library of csrc/cuda is found, built and refused, without a GPU."""

from __future__ import annotations

import shutil

import pytest
import torch

from rlhf_kernels import cuda_support, gae_, linear_logprobs, op
from tests.kernels.by_backend import ByBackend, arguments

needs_nvcc = pytest.mark.skipif(cuda_support.find_nvcc() is None, reason="nvcc was not found")
CU = torch.tensor([0, 2], dtype=torch.int32)


def test_it_is_never_chosen_unless_it_is_named():
    assert not any("cuda" in names for names in op.ORDER.values())
    assert [name for name, one in op.OPS.items() if "cuda" in one.backends] == [
        "gae_",
        "linear_logprobs",
        "linear_logprobs_backward",
    ]


def test_cpu_tensors_are_refused_by_name():
    with pytest.raises(ValueError, match="backend is 'cuda', but it cannot run gae_: rewards is on cpu, and it takes"):
        gae_(torch.zeros(2), torch.zeros(2), CU, gamma=1.0, lam=1.0, backend="cuda")
    with pytest.raises(ValueError, match="cannot run linear_logprobs: hidden is on cpu"):
        linear_logprobs(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, dtype=torch.int64), backend="cuda")


def test_with_cuda_in_the_environment_cpu_tensors_are_refused_and_operations_without_it_choose(monkeypatch, caplog):
    monkeypatch.setenv("RLHF_FAST_BACKEND", "cuda")
    op._log_once.cache_clear()
    with pytest.raises(ValueError, match="RLHF_FAST_BACKEND is 'cuda', but it cannot run gae_: rewards is on"):
        gae_(torch.zeros(2), torch.zeros(2), CU, gamma=1.0, lam=1.0)
    x = torch.tensor([1.0, 3.0])
    op.OPS["whiten_"](arguments("whiten_", x=x, shift_mean=True, ddof=0, eps=0.0))
    assert x.tolist() == [-1.0, 1.0]
    assert "RLHF_FAST_BACKEND is 'cuda', but whiten_ chooses its backend itself" in caplog.text


def on(device):
    """Tensors without data that say they are on `device`."""
    empty = torch.empty(2, device="meta")
    return type("Placed", (torch.Tensor,), {"device": property(lambda self: torch.device(device))})(empty)


def test_without_nvcc_or_on_two_devices_the_reason_says_so(monkeypatch):
    monkeypatch.setattr(cuda_support, "find_nvcc", lambda: None)
    refusal = cuda_support.cuda_refusal(arguments("gae_", rewards=on("cuda:0"), values=on("cuda:0")))
    assert refusal == "nvcc was not found, which builds it: install the CUDA toolkit or set CUDA_HOME"
    refusal = cuda_support.cuda_refusal(arguments("gae_", rewards=on("cuda:0"), values=on("cuda:1")))
    assert refusal == "got rewards cuda:0, values cuda:1, and it takes tensors of one device"
    refusal = ByBackend("cuda").refusal("gae_", rewards=on("cuda:0"))
    assert refusal.startswith("nvcc was not found")


def test_nvcc_is_looked_for_in_cuda_home_first(tmp_path, monkeypatch):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    cuda_support.find_nvcc.cache_clear()
    assert cuda_support.find_nvcc() == str(nvcc)
    nvcc.chmod(0o644)
    cuda_support.find_nvcc.cache_clear()
    assert cuda_support.find_nvcc() != str(nvcc)
    cuda_support.find_nvcc.cache_clear()


@needs_nvcc
@pytest.mark.slow
def test_the_library_is_built_once_for_a_device_and_a_change_of_the_sources_builds_another(tmp_path, monkeypatch):
    shutil.copytree(cuda_support.sources(), tmp_path / "csrc" / "cuda")
    monkeypatch.setattr(cuda_support, "sources", lambda: tmp_path / "csrc" / "cuda")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    held = tmp_path / "cache" / "rlhf_fast" / "cuda"
    cuda_support.library.cache_clear()
    built = cuda_support.library((9, 0))
    (first,) = held.iterdir()
    assert built.rlhf_gae_whiten.argtypes[-1] is cuda_support.POINTER and first.suffix == ".so"
    changed = first.stat().st_mtime_ns
    cuda_support.library.cache_clear()
    cuda_support.library((9, 0))
    assert first.stat().st_mtime_ns == changed and list(held.iterdir()) == [first]
    header = tmp_path / "csrc" / "cuda" / "device.h"
    header.write_text(header.read_text() + "#error not today\n")
    cuda_support.library.cache_clear()
    with pytest.raises(RuntimeError, match=r"csrc/cuda does not compile: .*nvcc(.|\n)*not today"):
        cuda_support.library((9, 0))
    assert list(held.iterdir()) == [first]  # nothing half made is left
    cuda_support.library.cache_clear()
