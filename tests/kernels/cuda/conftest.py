"""The CUDA C++ backends beside float64: on CPU tensors with their threads on fibres, and on a CUDA device.

`device` is "cpu" where g++ compiles the sources against `csrc/cuda/fibres.h`, and "cuda" in tests marked `gpu`.
"""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch

from rlhf_kernels import cuda_support

ON_CUDA = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(cuda_support.find_nvcc() is None, reason="nvcc was not found"),
]
ON_FIBRES = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
DEVICES = [pytest.param("cpu", marks=ON_FIBRES), pytest.param("cuda", marks=ON_CUDA)]


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", DEVICES)


@pytest.fixture(scope="session")
def on_fibres(tmp_path_factory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("cuda") / "fibres.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-x", "c++"]
    cuda_support.build(["g++", *flags], path)
    return cuda_support.load(path)


@pytest.fixture(autouse=True)
def cpu_tensors_run_on_fibres(request, monkeypatch):
    if "device" not in request.fixturenames or request.getfixturevalue("device") != "cpu":
        return
    library = request.getfixturevalue("on_fibres")

    def call(function, device, *arguments):
        given = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
        assert all(x.is_contiguous() for x in arguments if isinstance(x, torch.Tensor) and x.dim() == 1)
        assert getattr(library, function)(*given, None) == 0

    monkeypatch.setattr("rlhf_kernels.logprobs.cuda.call", call)
    monkeypatch.setattr("rlhf_kernels.gae_cuda.call", call)
