"""How the native log-probs run: what they refuse, layouts, threads and memory."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from rlhf_kernels import extension, linear_logprobs
from rlhf_kernels.op import NoLoss
from tests.kernels.by_backend import native
from tests.kernels.logprob_cases import (
    LEVELS,
    Case,
    assert_as_accurate_as_torch,
    case,
    each_dtype,
    each_way,
    exact,
    needs_native,
    recomputed,
)

pytestmark = needs_native
needs_fast_level = pytest.mark.skipif(LEVELS[-1:] == ["portable"], reason="the reference is faster on this processor")


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def supported(**change):
    """Arguments that the extension takes, but for the change."""
    plain = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(6, 4), "labels": torch.tensor([0, 5]), "bias": None}
    return plain | change


def refusals(given):
    """Of the forward pass, its gradient, and policy and reference together."""
    return [
        native.refusal("linear_logprobs", **given),
        native.refusal("linear_logprobs_backward", **given),
        native.refusal("policy_reference_logprobs", **given, ref_hidden=given["hidden"]),
    ]


@needs_fast_level
def test_what_it_can_take_is_supported():
    assert refusals(supported()) == [None] * 3
    assert refusals(supported(weight=torch.zeros(6, 8)[:, :4], bias=torch.zeros(6).bfloat16())) == [None] * 3
    assert refusals(supported(hidden=torch.zeros(4, 2).t())) == [None] * 3


@needs_fast_level
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": torch.zeros(4, 6).t()}, r"rows of weight are not contiguous; call .contiguous\(\)"),
        ({"weight": torch.zeros(6, 4, dtype=torch.bfloat16)}, "hidden torch.float32, weight torch.bfloat16"),
        ({"hidden": torch.zeros(2, 4).half(), "weight": torch.zeros(6, 4).half()}, "takes bfloat16 or float32"),
        ({"hidden": torch.zeros(2, 4).double()}, "takes bfloat16 or float32"),
        ({"bias": torch.zeros(6).double()}, "bias is float64"),
        ({"hidden": torch.zeros(2, 0), "weight": torch.zeros(6, 0)}, "rows of hidden are empty"),
        ({"labels": torch.zeros(2, dtype=torch.int64, device="meta")}, "labels is on meta"),
    ],
)
def test_what_it_cannot_take_is_refused_with_the_reason(change, reason):
    for refusal in refusals(supported(**change)):
        assert re.search(reason, refusal)


def test_a_weight_of_the_reference_is_looked_at_too():
    given = supported(ref_hidden=torch.zeros(2, 4), ref_weight=torch.zeros(4, 6).t())
    assert "rows of ref_weight are not contiguous" in native.refusal("policy_reference_logprobs", **given)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_gradient_of_weight_or_bias_is_refused_in_the_backward_pass(name):
    refusal = native.refusal("linear_logprobs_backward", **supported(**{f"{name}_gradient": True}))
    assert re.search(f"{name} needs a gradient, .* hidden only; freeze {name} or leave it", refusal)


def test_an_absent_extension_and_an_instruction_set_too_slow_are_reasons(monkeypatch):
    monkeypatch.setattr(extension, "LEVEL", "portable")
    for refusal in refusals(supported()):
        assert isinstance(refusal, NoLoss) and refusal.runs and "neither AVX2 nor AVX-512" in refusal
    monkeypatch.setattr(extension, "MISSING", "not built")
    assert refusals(supported()) == ["not built"] * 3


def test_an_instruction_set_too_slow_runs_where_it_is_asked_for_and_is_passed_over_without_a_word(monkeypatch, caplog):
    monkeypatch.setattr(extension, "LEVEL", "portable")
    given = case(3, 8, 20, torch.float32)
    ran = []
    run = extension.native.linear_logprobs
    monkeypatch.setattr(extension.native, "linear_logprobs", lambda *a, **k: ran.append(True) or run(*a, **k))
    args = given.arguments()
    linear_logprobs(**args)
    assert not ran and not caplog.records
    out = linear_logprobs(**args, backend="native").logprobs
    assert ran
    np.testing.assert_allclose(out, exact(given).logprobs, atol=1e-5)
    monkeypatch.setenv("RLHF_FAST_BACKEND", "native")
    linear_logprobs(**args)
    assert len(ran) == 2


@each_way
@each_dtype
def test_rows_apart_in_memory_are_read_in_place_and_other_layouts_of_hidden_are_copied(run, dtype):
    given = case(20, 24, 90, dtype)
    apart = given._replace(
        hidden=torch.cat([given.hidden, given.hidden], 1)[:, :24], weight=torch.cat([given.weight] * 3, 1)[:, :24]
    )
    transposed = given._replace(hidden=given.hidden.t().contiguous().t())
    for other in (apart, transposed):
        assert all(np.array_equal(a, b) for a, b in zip(run(given), run(other), strict=True))


@each_way
@pytest.mark.parametrize(("vocabulary", "spread"), [(42, 26), (140, 24)], ids=["within a block", "between blocks"])
def test_bug_17_weights_beyond_two_to_the_31_elements_are_addressed_right(run, vocabulary, spread):
    """Rows 2**spread elements apart: the last ones start beyond 2**31. Memory that is never touched is never taken."""
    given = case(3, 40, vocabulary, torch.bfloat16)
    memory = torch.empty(vocabulary << spread, dtype=torch.bfloat16)
    far = given._replace(weight=memory.view(vocabulary, -1)[:, :40].copy_(given.weight))
    assert all(np.array_equal(a, b) for a, b in zip(run(given), run(far), strict=True))


def alone(given, row):
    """The case with that row only."""
    return given._replace(
        **{name: getattr(given, name)[row : row + 1] for name in Case._fields[:5] if name != "weight"}
    )


@each_dtype
def test_a_row_depends_neither_on_the_other_rows_nor_on_the_number_of_threads(dtype, threads):
    given = case(130, 50, 3000, dtype)
    threads(1)
    expected, single = recomputed(given), recomputed(alone(given, 77))
    for count in (2, 3, 7):
        threads(count)
        again = recomputed(given)
        assert all(np.array_equal(a, b) for a, b in zip(expected[:2], again[:2], strict=True))
    assert single.logprobs == expected.logprobs[77] and single.entropy == expected.entropy[77]


@each_way
@each_dtype
def test_gradients_depend_on_the_number_of_threads_only_and_are_accurate_for_each(run, dtype, threads):
    given = case(130, 50, 3000, dtype, skipped=5)
    for count in (1, 2, 3, 7):
        threads(count)
        assert all(np.array_equal(a, b) for a, b in zip(run(given), run(given), strict=True))
        assert_as_accurate_as_torch(given, run)
    threads(1)
    for whole, single in zip(run(given), run(alone(given, 77)), strict=True):
        np.testing.assert_array_equal(whole[77:78], single)


@each_way
@each_dtype
def test_more_rows_than_one_pass_and_one_task_hold(run, dtype):
    """2500 rows are two passes forward and ten tasks backward."""
    assert_as_accurate_as_torch(case(2500, 8, 40, dtype, skipped=100), run)


@pytest.mark.parametrize("wanted", ["d_logprobs", "d_entropy"])
def test_an_absent_upstream_gradient_counts_as_zero(wanted):
    given = case(9, 16, 50, torch.float32)
    absent = "d_entropy" if wanted == "d_logprobs" else "d_logprobs"
    logprobs, entropy, statistics, _ = native.linear_logprobs(**given.arguments(), entropy=True, directions=False)
    d_hidden, d_weight, d_bias = native.linear_logprobs_backward(
        **given.arguments(),
        logprobs=logprobs,
        entropy=entropy if wanted == "d_entropy" else torch.empty(0),
        statistics=statistics,
        **{wanted: getattr(given, wanted), absent: None},
        weight_gradient=False,
        bias_gradient=False,
    )
    zeroed = recomputed(given._replace(**{absent: torch.zeros(9)}))
    np.testing.assert_allclose(d_hidden, zeroed.d_hidden, rtol=1e-6, atol=1e-7)
    assert d_weight.shape == d_bias.shape == (0,)


PEAK = """
import torch
from tests.kernels.by_backend import native
def memory(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) / 1024
def step(rows):
    given = dict(hidden=torch.ones(rows, 512, dtype=torch.bfloat16), weight=weight, bias=None, temperature=1.0)
    given |= dict(labels=torch.zeros(rows, dtype=torch.int64), softcap=None)
    logprobs, entropy, statistics, _ = native.linear_logprobs(**given, entropy=True, directions=DIRECTIONS)
    if not DIRECTIONS:
        native.linear_logprobs_backward(**given, logprobs=logprobs, entropy=entropy, statistics=statistics,
            d_logprobs=logprobs, d_entropy=entropy, weight_gradient=False, bias_gradient=False)
weight = torch.ones(30_000, 512, dtype=torch.bfloat16)
torch.set_num_threads(2)
step(1)
before = memory("VmRSS")
step(600)
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from /proc")
@pytest.mark.parametrize("directions", [False, True])
def test_extra_memory_stays_far_below_the_logits(directions):
    """The logits would take 69 MiB in float32, and their gradient as much; tiles and rows take less than 16 MiB."""
    code = f"import sys; sys.path[:0] = {sys.path!r}\nDIRECTIONS = {directions}\n{PEAK}"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 16
