"""How the native log-probs are chosen and run: what they refuse, threads, memory, layouts and autograd."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from rlhf_kernels import backends, linear_logprobs, policy_reference_logprobs
from rlhf_kernels.logprobs import native
from tests.kernels.logprob_cases import LEVELS, assert_as_accurate_as_torch, case, each_dtype, needs_native, run

pytestmark = needs_native
needs_fast_level = pytest.mark.skipif(LEVELS[-1:] == ["portable"], reason="the reference is faster on this processor")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_fast_level
def test_the_native_backend_is_what_runs_on_a_cpu(monkeypatch):
    calls = []
    for op in ("linear_logprobs", "policy_reference_logprobs"):
        monkeypatch.setattr(native._native, op, lambda *_, **__: calls.append(1))
    given = case(4, 8, 16, torch.bfloat16)
    linear_logprobs(given.hidden, given.weight, given.labels)
    policy_reference_logprobs(given.hidden, given.hidden, given.weight, given.labels, exact_kl=True)
    assert len(calls) == 2


def test_without_a_fast_instruction_set_the_reference_runs(monkeypatch, caplog):
    monkeypatch.setattr(native, "LEVEL", "portable")
    backends._log_once.cache_clear()
    given = case(4, 8, 16, torch.bfloat16)
    linear_logprobs(given.hidden, given.weight, given.labels)
    assert "neither AVX2 nor AVX-512" in caplog.text
    with pytest.raises(ValueError, match="the reference is faster"):
        linear_logprobs(given.hidden, given.weight, given.labels, backend="native")


@needs_fast_level
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": torch.zeros(6, 4, requires_grad=True)}, "weight needs a gradient, .* hidden only"),
        ({"bias": torch.zeros(6, requires_grad=True)}, "bias needs a gradient"),
        ({"weight": torch.zeros(4, 6).t()}, r"rows of weight are not contiguous; call .contiguous\(\)"),
        ({"weight": torch.zeros(6, 4, dtype=torch.bfloat16)}, "hidden torch.float32, weight torch.bfloat16"),
        ({"hidden": torch.zeros(2, 4).half(), "weight": torch.zeros(6, 4).half()}, "takes bfloat16 or float32"),
        ({"hidden": torch.zeros(2, 4).double()}, "takes bfloat16 or float32"),
        ({"bias": torch.zeros(6).double()}, "bias is float64"),
        ({"hidden": torch.zeros(2, 0), "weight": torch.zeros(6, 0)}, "rows of hidden are empty"),
    ],
)
def test_what_it_cannot_take_is_refused_with_the_reason_and_left_to_the_reference(change, reason):
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(6, 4), "labels": torch.tensor([0, 5])} | change
    with pytest.raises(ValueError, match=reason):
        linear_logprobs(**arguments, backend="native")
    out = linear_logprobs(**arguments)
    torch.testing.assert_close(out.logprobs.float(), torch.full((2,), -np.log(6)).float())


@needs_fast_level
def test_a_weight_that_needs_no_gradient_now_is_welcome():
    given = case(4, 8, 16, torch.float32)
    with torch.no_grad():
        linear_logprobs(given.hidden, given.weight.requires_grad_(), given.labels, backend="native")


@each_dtype
def test_rows_apart_in_memory_are_read_in_place_and_other_layouts_of_hidden_are_copied(dtype):
    given = case(20, 24, 90, dtype)
    apart = given._replace(
        hidden=torch.cat([given.hidden, given.hidden], 1)[:, :24], weight=torch.cat([given.weight] * 3, 1)[:, :24]
    )
    transposed = given._replace(hidden=given.hidden.t().contiguous().t())
    for other in (apart, transposed):
        assert all(np.array_equal(a, b) for a, b in zip(run(given, native), run(other, native), strict=True))


@pytest.mark.parametrize(("vocabulary", "spread"), [(42, 26), (140, 24)], ids=["within a block", "between blocks"])
def test_bug_17_weights_beyond_two_to_the_31_elements_are_addressed_right(vocabulary, spread):
    """Rows 2**spread elements apart: the last ones start beyond 2**31. Memory that is never touched is never taken."""
    given = case(3, 40, vocabulary, torch.bfloat16)
    memory = torch.empty(vocabulary << spread, dtype=torch.bfloat16)
    far = given._replace(weight=memory.view(vocabulary, -1)[:, :40].copy_(given.weight))
    assert all(np.array_equal(a, b) for a, b in zip(run(given, native), run(far, native), strict=True))


@each_dtype
def test_a_row_depends_neither_on_the_other_rows_nor_on_the_number_of_threads(dtype, threads):
    given = case(130, 50, 3000, dtype)
    threads(1)
    alone = given._replace(**{name: getattr(given, name)[77:78] for name in given._fields[:5] if name != "weight"})
    expected, single = run(given, native), run(alone, native)
    for count in (2, 3, 7):
        threads(count)
        again = run(given, native)
        assert all(np.array_equal(a, b) for a, b in zip(expected[:2], again[:2], strict=True))
        assert np.array_equal(run(given, native).d_hidden, again.d_hidden)  # the same, given the number of threads
        assert_as_accurate_as_torch(given)
    assert single.logprobs == expected.logprobs[77] and single.entropy == expected.entropy[77]


@each_dtype
def test_more_rows_than_one_pass_and_one_task_hold(dtype):
    """2500 rows are two passes forward and ten tasks backward."""
    assert_as_accurate_as_torch(case(2500, 8, 40, dtype, skipped=100))


@pytest.mark.parametrize("wanted", ["logprobs", "entropy"])
def test_either_output_alone_gives_its_own_gradient(wanted):
    given = case(9, 16, 50, torch.float32)
    zero = torch.zeros(9)
    alone = given._replace(**{"d_entropy" if wanted == "logprobs" else "d_logprobs": zero})
    hidden = given.hidden.clone().requires_grad_()
    out = native.linear_logprobs(hidden, **given.arguments(), entropy=True)
    upstream = given.d_logprobs if wanted == "logprobs" else given.d_entropy
    getattr(out, wanted).backward(upstream)
    np.testing.assert_array_equal(hidden.grad, run(alone, native).d_hidden)


def test_a_second_derivative_is_refused_rather_than_wrong():
    given = case(3, 8, 20, torch.float32)
    hidden = given.hidden.requires_grad_()
    out = native.linear_logprobs(hidden, **given.arguments(), entropy=False)
    with pytest.raises(RuntimeError, match="use backend='reference' for a second"):
        torch.autograd.grad(out.logprobs.sum(), hidden, create_graph=True)


@each_dtype
def test_autocast_changes_nothing(dtype):
    given = case(20, 64, 90, dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(given, native)
    assert all(np.array_equal(a, b) for a, b in zip(run(given, native), inside, strict=True))


PEAK = """
import torch
from rlhf_kernels.logprobs import native
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
def step(rows):
    hidden = torch.ones(rows, 512, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.zeros(rows, dtype=torch.int64)
    out = native.linear_logprobs(hidden, weight, labels, bias=None, temperature=1.0, softcap=None, entropy=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
weight = torch.ones(30_000, 512, dtype=torch.bfloat16)
torch.set_num_threads(2)
step(1)
before = memory("VmRSS")
step(600)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
def test_extra_memory_stays_far_below_the_logits():
    """The logits would take 69 MiB in float32, and their gradient as much; tiles and rows take less than 16 MiB."""
    code = f"import sys; sys.path[:0] = {sys.path!r}\n{PEAK}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 16
