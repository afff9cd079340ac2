"""The profile of a run: its phases, floors counted by hand, and what it leaves on disk."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from rlhf_fast.model.roles import Policy
from rlhf_fast.profiling.profile import Profile, profiled
from rlhf_fast.profiling.rates import Rates, measure_rates, sizes
from rlhf_fast.runtime import phases
from tests.train.cases import run


def test_phases_floors_and_trace_are_written(tmp_path, capsys):
    ppo = run(tmp_path)
    with profiled(torch.float32, torch.device("cpu")) as profile:
        for _ in range(3):
            ppo.step()
    profile.write(tmp_path)
    facts = json.loads((tmp_path / "profile.json").read_text())
    assert list(facts["phases"]) == ["rollout", "trunk", "scoring", "update"]
    assert all(phase["times"] == 3 and phase["seconds"] > 0 for phase in facts["phases"].values())
    assert facts["phases"]["update"]["floor"] > facts["phases"]["scoring"]["floor"] > 0
    assert facts["phases"]["trunk"]["floor"] == 0  # every layer is adapted
    assert json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert "Where the time went" in capsys.readouterr().out


@pytest.mark.parametrize("gradients", [False, True])
def test_the_floor_of_a_forward_is_its_products_counted_by_hand(tmp_path, gradients):
    """Seven linear layers in each of the layers, two attention products over half of the pairs, and the head."""
    ppo = run(tmp_path)
    config, rollout = ppo.policy.model.base.config, ppo.collect()
    packed, slots = rollout.select(list(range(len(rollout))))
    seen = Profile(Rates(flops=1.0, bytes=float("inf")))
    with phases.listen(seen), phases.phase("it"), torch.set_grad_enabled(gradients):
        Policy(ppo.policy.model, "policy").logprobs(packed)
    h, kv, inner = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    weights = config.num_hidden_layers * (2 * h * h + 2 * h * kv + 3 * h * inner)
    pairs = sum(n * n for n in rollout.lengths) / 2
    flops = 2 * len(packed.tokens) * weights + config.num_hidden_layers * 4 * pairs * h
    flops += 2 * len(slots) * config.vocab_size * h
    assert seen.totals["it"].floor == pytest.approx(flops * (2 if gradients else 1))


def test_without_a_trace_there_are_the_phases_alone(tmp_path):
    ppo = run(tmp_path)
    with profiled(torch.float32, torch.device("cpu"), trace=False) as profile:
        for _ in range(2):
            ppo.step()
    profile.write(tmp_path)
    assert (tmp_path / "profile.json").exists() and not (tmp_path / "trace.json.gz").exists()


class Card:
    """A device that works through what is asked of it while the host goes on, on a clock of its own."""

    def __init__(self, monkeypatch):
        self.now, self.asked = 100.0, 0.0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr("torch.cuda.synchronize", self.synchronize)

    def synchronize(self, device):
        self.now, self.asked = self.now + self.asked, 0.0


def test_on_a_device_a_phase_lasts_until_what_it_asked_for_is_done(monkeypatch):
    """2 seconds asked for before, 5 in the first phase, none in the second; the host takes 1 in each."""
    card, seen = Card(monkeypatch), Profile(Rates(1.0, 1.0), "cuda")
    card.asked = 2.0
    with phases.listen(seen):
        for name, asked in (("scoring", 5.0), ("update", 0.0)):
            with phases.phase(name):
                card.now, card.asked = card.now + 1.0, asked
    assert {name: total.seconds for name, total in seen.totals.items()} == {"scoring": 6.0, "update": 1.0}


def test_a_cpu_is_not_waited_for_and_a_device_is_in_measuring_its_rates(monkeypatch):
    monkeypatch.setattr("torch.cuda.synchronize", lambda device: pytest.fail("waited"))
    assert measure_rates(torch.float32, "cpu").flops > 0


GIB = 2**30


@pytest.mark.parametrize(
    "device, itemsize, free, expected",
    [
        ("cpu", 4, 64 * GIB, (2048, 1 << 25)),
        ("cuda", 2, 70 * GIB, (8192, 1 << 28)),  # 8192^2 of 10 bytes are 0.6 GiB; the copy is from and to 1 GiB
        ("cuda", 2, 7 * GIB, (8192, 1 << 27)),
        ("cuda", 2, 2 * GIB, (4096, 1 << 26)),
        ("cpu", 2, GIB // 4, (2048, 1 << 23)),
    ],
)
def test_rates_are_measured_at_sizes_that_fit_the_device(device, itemsize, free, expected):
    assert sizes(torch.device(device), itemsize, free) == expected
