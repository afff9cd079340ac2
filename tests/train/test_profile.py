"""The profile of a run: its phases, floors counted by hand, and what it leaves on disk."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from rlhf_fast.model.roles import Policy
from rlhf_fast.profiling.profile import Profile, profiled
from rlhf_fast.profiling.rates import Rates
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
