"""What the tracker counts: storages by owner and line, with sizes worked out by hand."""

from __future__ import annotations

import gc

import pytest
import torch

from rlhf_fast.profiling.memory_tracker import SMALL, Tracker
from rlhf_kernels import linear_logprobs
from rlhf_kernels.extension import MISSING, native

ONE = 4 * 8192  # bytes of a tensor of 8192 floats, large enough to be looked at


@pytest.fixture
def tracker():
    """With the peaks that it was told of: the total before each fall."""
    tracker = Tracker(lambda: tracker.tops.append(tracker.total))
    tracker.tops = []
    return tracker


def test_a_storage_counts_once_until_its_last_tensor_is_gone(tracker):
    with tracker:
        a = torch.zeros(8192)
        b, c = a.view(2, 4096)[1], a[::2].t()
        assert tracker.total == ONE
        del a, b
        assert tracker.total == ONE
        del c
        assert tracker.total == 0
        d = torch.zeros(8192).double()  # the floats are gone once it is converted
    assert tracker.total == d.nbytes == 2 * ONE and tracker.tops == [ONE, 3 * ONE]


def test_tensors_belong_to_who_is_named_when_they_are_made_until_another_claims_them(tracker):
    before = torch.zeros(100)
    with tracker:
        tracker.owner = "activations"
        a = torch.zeros(8192)
        tracker.owner = "buffers"
        b = torch.zeros(3, 8192)
        assert tracker.by_owner == {"activations": ONE, "buffers": 3 * ONE}
        tracker.claim("gradients", [b[1]])
        tracker.claim("shared base", [before])
    assert {owner: count for owner, count in tracker.by_owner.items() if count} == {
        "activations": ONE, "gradients": 3 * ONE, "shared base": 400,
    }  # fmt: skip
    assert tracker.total == 4 * ONE + 400
    del a, b, before
    assert tracker.total == 0 and not tracker.live


def test_what_backward_makes_is_seen_and_what_it_frees(tracker):
    """x (64, 128) @ w (128, 256): x * 2 and the output live until backward, then the gradient of w; w itself was there
    before, and counts since it is read."""
    w = torch.randn(128, 256, requires_grad=True)
    with tracker:
        y = (torch.ones(64, 128) * 2) @ w
        assert tracker.live["shared base", "made before"] == w.nbytes
        assert tracker.total == 4 * (64 * 128 + 64 * 256) + w.nbytes
        loss = y.sum()
        del y
        loss.backward()
        del loss
    assert tracker.total - w.nbytes == w.grad.nbytes == 4 * 128 * 256
    (line,) = [line for _, line in tracker.live if line != "made before"]
    assert "MmBackward0" in line  # the node of the graph, as the stack says nothing of it


def test_memory_outside_of_torch_lasts_as_long_as_its_keeper(tracker):
    class Keeper: ...

    keeper = Keeper()
    with tracker:
        tracker.keep("packed weights", 12345, keeper)
        assert tracker.by_owner["packed weights"] == tracker.total == 12345
        del keeper
        gc.collect()
    assert tracker.total == 0 and tracker.tops == [12345]


@pytest.mark.skipif(MISSING is not None, reason="the C++ extension is not built")
def test_scratch_of_a_kernel_counts_at_its_most_beside_its_results(tracker):
    hidden, weight = torch.randn(64, 128), torch.randn(1000, 128)
    labels = torch.zeros(64, dtype=torch.int64)
    native.restart_scratch_peak()
    held = native.scratch_held()
    plain = linear_logprobs(hidden, weight, labels, backend="native").logprobs
    scratch = native.scratch_peak() - held
    assert scratch > 128 * 4 * 16  # it copies rows of the hidden states at least
    linear_logprobs(torch.randn(512, 128), weight, torch.zeros(512, dtype=torch.int64), backend="native")  # more
    assert native.scratch_peak() - held > scratch
    peaks: list[dict] = []
    tracker.on_top = lambda: peaks.append(dict(tracker.live))
    with tracker:
        seen = linear_logprobs(hidden, weight, labels, backend="native").logprobs
        workspace = {count for peak in peaks for (owner, _), count in peak.items() if owner == "log-prob workspace"}
        assert workspace == {scratch}
        assert tracker.by_owner["log-prob workspace"] == 0
    assert torch.equal(plain, seen)
    assert native.scratch_held() == held


def test_what_a_kernel_allocates_in_torch_is_seen_too(tracker):
    """The reference has the logits of all rows in float32 at once."""
    with tracker:
        hidden, weight, labels = torch.randn(64, 128), torch.randn(1000, 128), torch.zeros(64, dtype=torch.int64)
        before = tracker.total
        out = linear_logprobs(hidden, weight, labels, backend="reference").logprobs
        assert tracker.total - before == out.untyped_storage().nbytes()
    assert max(tracker.tops) >= 64 * 1000 * 4


def test_small_storages_share_a_line(tracker):
    with tracker:
        small = [torch.zeros(10), torch.zeros(SMALL // 4 - 1)]
    assert dict(tracker.live) == {("shared base", "small ones"): sum(x.nbytes for x in small)}


def test_what_was_made_before_counts_when_it_is_first_seen(tracker):
    weight = torch.randn(100, 100)
    with tracker:
        turned = weight.t()
    assert dict(tracker.live) == {("shared base", "made before"): 40000} and turned.shape == (100, 100)


def test_counts_stay_once_nothing_is_watched_any_more(tracker):
    with tracker:
        kept = torch.zeros(8192)
    tracker.forget()
    del kept
    assert tracker.total == ONE
