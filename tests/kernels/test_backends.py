"""How a backend is chosen, and what the C++ backend of `gae_` promises beside the reference."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch

from rlhf_kernels import (
    Decoder,
    extension,
    gae_,
    linear_logprobs,
    lora_linear,
    moments,
    op,
    packed_attention,
    rms_norm,
)
from rlhf_kernels.op import OPS, Backend, NoLoss, choose, schema

needs_native = pytest.mark.skipif(
    extension.MISSING is not None, reason="the C++ extension is not built: install the package from source"
)


def ragged(lengths, *, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths, dtype=torch.int64)
    cu = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
    rewards, values = torch.randn(2, int(lengths.sum()), generator=g, dtype=dtype)
    return rewards, values, cu, torch.randn(len(lengths), generator=g, dtype=dtype)


def run(columns, backend=None):
    rewards, values, cu, bootstrap = columns
    advantages = rewards.clone()
    returns = gae_(advantages, values, cu, gamma=0.99, lam=0.95, bootstrap=bootstrap, backend=backend)
    return advantages, returns


class Arguments(NamedTuple):
    x: torch.Tensor


class Fake:
    """Backends of an operation `fake` that answer their own name; `refusals` say why some cannot run."""

    def __init__(self, *names, **refusals):
        op._log_once.cache_clear()
        self.backends = {
            name: Backend(lambda a, name=name: name, lambda a, name=name: refusals.get(name))
            for name in names or ("native", "reference")
        }

    def __call__(self, backend=None):
        a = Arguments(torch.zeros(1))
        choice = choose("fake", self.backends, a, backend)
        for message in choice.messages:
            op._log_once(message)
        return self.backends[choice.name].run(a)


def told(caplog):
    return [record.getMessage() for record in caplog.records]


def test_the_first_that_can_run_is_chosen():
    assert Fake()() == "native"


def test_an_automatic_fall_back_is_logged_once_with_its_reason(caplog):
    fake = Fake(native="it is raining")
    assert [fake(), fake(), fake()] == ["reference"] * 3
    assert told(caplog) == ["fake runs without its backend 'native': it is raining"]


@pytest.mark.parametrize("bias", [False, True])
def test_training_all_weights_logs_nothing(monkeypatch, caplog, bias):
    """What a full fine-tuning runs: the log-probs of a head, and a norm, whose weights need a gradient."""
    op._log_once.cache_clear()
    monkeypatch.delenv("RLHF_FAST_BACKEND", raising=False)
    x, weight, norm = (torch.randn(*shape, requires_grad=True) for shape in ((4, 16), (9, 16), (16,)))
    head_bias = torch.zeros(9, requires_grad=True) if bias else None
    states = rms_norm(x, norm, eps=1e-6)
    linear_logprobs(states, weight, torch.tensor([0, 3, 8, 1]), bias=head_bias).logprobs.sum().backward()
    assert weight.grad is not None and norm.grad is not None
    assert not [record for record in caplog.records if "'native'" in record.getMessage()]


def test_the_environment_variable_chooses(monkeypatch):
    fake = Fake()
    monkeypatch.setenv("RLHF_FAST_BACKEND", "reference")
    assert fake() == "reference"
    assert fake("native") == "native"  # the argument goes first
    monkeypatch.setenv("RLHF_FAST_BACKEND", "")
    assert fake() == "native"


def test_an_explicit_choice_that_cannot_run_raises_with_the_reason(monkeypatch):
    fake = Fake(native="it is raining")
    with pytest.raises(ValueError, match="backend is 'native', but it cannot run fake: it is raining"):
        fake("native")
    monkeypatch.setenv("RLHF_FAST_BACKEND", "native")
    with pytest.raises(ValueError, match="RLHF_FAST_BACKEND is 'native', but it cannot run fake: it is raining"):
        fake()


@pytest.mark.parametrize("name", ["tritom", ""])
def test_an_unknown_choice_raises_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"expected one of \['native', 'reference'\]"):
        Fake()(name)


def test_a_name_in_the_environment_that_no_operation_knows_raises_with_those_there_are(monkeypatch):
    monkeypatch.setenv("RLHF_FAST_BACKEND", "tritom")
    known = r"RLHF_FAST_BACKEND is 'tritom', expected one of \['cuda', 'flash', 'native', 'reference', 'triton'\]"
    with pytest.raises(ValueError, match=known):
        Fake()()
    with pytest.raises(ValueError, match=known):
        packed_attention(*torch.zeros(3, 2, 1, 8), [0, 2], scale=1.0)
    with pytest.raises(ValueError, match=known):
        Decoder.refusal(torch.float32, torch.device("cpu"))


def test_an_operation_without_the_backend_of_the_environment_chooses_itself_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("RLHF_FAST_BACKEND", "triton")
    fake = Fake()
    assert [fake(), fake()] == ["native"] * 2
    assert told(caplog) == [
        "RLHF_FAST_BACKEND is 'triton', but fake chooses its backend itself: it has none of that name"
    ]
    with pytest.raises(ValueError, match=r"backend is 'triton', expected one of \['native', 'reference'\] for fake"):
        fake("triton")  # asked of this call alone


@pytest.mark.parametrize("name", ["packed_attention", "lora_linear"])
def test_with_triton_in_the_environment_operations_without_it_give_the_same(name, monkeypatch, caplog):
    x = torch.linspace(-1, 1, 32).view(4, 1, 8)
    run = {
        "packed_attention": lambda: packed_attention(x, x, x, [0, 4], scale=0.5),
        "lora_linear": lambda: lora_linear(x[:, 0], x[:, 0], [x[:1, 0]], [x[:, 0, :1]], [2.0], [0], [0, 4]),
    }[name]
    op._log_once.cache_clear()
    expected = run()
    monkeypatch.setenv("RLHF_FAST_BACKEND", "triton")
    assert torch.equal(run(), expected)
    assert f"RLHF_FAST_BACKEND is 'triton', but {name} chooses its backend itself" in caplog.text


def test_a_backend_that_is_no_loss_and_runs_is_passed_over_without_a_word_and_runs_where_named(monkeypatch, caplog):
    fake = Fake(native=NoLoss("vectors are short here", runs=True))
    assert fake() == "reference" and not caplog.records
    assert fake("native") == "native"
    monkeypatch.setenv("RLHF_FAST_BACKEND", "native")
    assert fake() == "native" and not caplog.records


def test_a_backend_that_is_no_loss_and_cannot_run_is_refused_by_name_and_left_alone_in_the_environment(
    monkeypatch, caplog
):
    fake = Fake(native=NoLoss("it needs tiles"))
    assert fake() == "reference" and not caplog.records
    with pytest.raises(ValueError, match="backend is 'native', but it cannot run fake: it needs tiles"):
        fake("native")
    monkeypatch.setenv("RLHF_FAST_BACKEND", "native")
    assert [fake(), fake()] == ["reference"] * 2
    assert told(caplog) == ["RLHF_FAST_BACKEND is 'native', but fake chooses its backend itself: it needs tiles"]


def test_when_none_can_run_that_is_said():
    with pytest.raises(ValueError, match="no backend of fake can run on cpu"):
        Fake(native="rain", reference="snow")()


def test_lora_linear_takes_a_backend_like_the_others():
    x = torch.linspace(-1, 1, 12).view(3, 4)
    call = (x, x, [x[:1]], [x[:, :1]], [2.0], [0], [0, 3])
    assert torch.equal(lora_linear(*call, backend="reference"), lora_linear(*call))
    with pytest.raises(ValueError, match="backend is 'native', but it cannot run lora_linear: "):
        lora_linear(*call, backend="native")  # float32
    with pytest.raises(ValueError, match=r"expected one of \['native', 'reference'\] for lora_linear"):
        lora_linear(*call, backend="triton")


def test_a_backend_from_elsewhere_runs_where_it_is_named(monkeypatch):
    given = []
    mine = Backend(lambda a: given.append(a) or a.values * 10)
    monkeypatch.setitem(OPS["gae_"].backends, "mine", mine)
    rewards, values, _, bootstrap = columns = ragged([2])
    assert torch.equal(run(columns, "mine")[1], values * 10)
    assert torch.equal(given[0].bootstrap, bootstrap) and (given[0].gamma, given[0].lam) == (0.99, 0.95)
    monkeypatch.setenv("RLHF_FAST_BACKEND", "mine")
    assert torch.equal(run(columns)[1], values * 10)
    assert moments(rewards).count == 2  # which has none of that name, and does not raise


def test_the_schema_of_an_op_is_its_arguments():
    assert schema("gae_", OPS["gae_"].arguments, "Tensor", ("rewards",)) == (
        "gae_(Tensor(a!) rewards, Tensor values, Tensor cu_responses, float gamma, float lam, Tensor? bootstrap, "
        "bool whiten, Tensor? mask, int ddof, float eps, str? backend) -> Tensor"
    )
    assert schema("lora_linear", OPS["lora_linear"].arguments, "()", ()) == (
        "lora_linear(Tensor x, Tensor weight, Tensor? bias, Tensor[] lora_a, Tensor[] lora_b, float[] scale, "
        "int[] slots, int[] rows, str? backend) -> ()"
    )


def test_gae_runs_on_the_reference_when_the_extension_is_missing(monkeypatch, caplog):
    columns = ragged([3, 0, 5])
    expected = run(columns, "reference")
    monkeypatch.setattr(extension, "MISSING", "the C++ extension is not available")
    op._log_once.cache_clear()
    torch.testing.assert_close(run(columns), expected, rtol=0, atol=0)
    assert told(caplog) == [
        "what runs on a CPU runs in torch, several times slower: the C++ extension is not available"
    ]
    with pytest.raises(ValueError, match="the C\\+\\+ extension is not available"):
        run(columns, "native")


@needs_native
@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 3, 0, 0, 7, 1, 0], [50, 1, 120], list(range(40))])
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_native_gae_equals_the_reference(lengths, bootstrapped):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
        columns = ragged(lengths, dtype=dtype)
        columns = columns if bootstrapped else (*columns[:3], None)
        torch.testing.assert_close(run(columns, "native"), run(columns, "reference"), rtol=tolerance, atol=tolerance)


@needs_native
def test_native_gae_is_what_runs_by_default_on_a_cpu(monkeypatch):
    calls = []
    monkeypatch.setattr(extension.native, "gae_float32", lambda *arguments: calls.append(arguments))
    run(ragged([4]))
    assert len(calls) == 1


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_result(threads):
    columns = ragged([700] * 60)
    expected = run(columns, "reference")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(run(columns, "native"), expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


THREADS = """
import os, torch
from rlhf_kernels import gae_
torch.set_num_threads(1)  # before the first tensor, so that no worker thread exists yet
rewards, values, cu = torch.zeros(80000), torch.zeros(80000), torch.arange(0, 80001, 1000, dtype=torch.int32)
def os_threads_after(threads):
    torch.set_num_threads(threads)
    gae_(rewards, values, cu, gamma=1.0, lam=1.0, backend="native")
    return len(os.listdir("/proc/self/task"))
print(os_threads_after(1), os_threads_after(3))
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.skipif(not getattr(extension.native, "openmp", False), reason="built without OpenMP")
def test_native_gae_uses_as_many_threads_as_torch():
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }
    command = [sys.executable, "-c", THREADS]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    one, three = map(int, out.stdout.split())
    assert three == one + 2


@needs_native
def test_native_gae_refuses_a_column_that_is_not_contiguous():
    rewards = torch.zeros(4, 2)[:, 0]
    cu = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"rewards is not contiguous; call .contiguous\(\)"):
        gae_(rewards, torch.zeros(4), cu, gamma=1.0, lam=1.0, backend="native")
