"""The memory profile of a run: peaks of scripted phases, owners of a tiny PPO run by hand, and what it leaves."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import re

import pytest
import torch
from peft import LoraConfig

import rlhf_fast.profiling
from rlhf_fast.model.roles import Policy
from rlhf_fast.profiling.memory_page import MEMORY_PAGE, write_memory_page
from rlhf_fast.profiling.memory_profile import STRETCHES, MemoryProfile, Timeline, owners_of
from rlhf_fast.profiling.memory_table import PHASES, MemoryTable
from rlhf_fast.runtime import memory, phases
from tests.model_cases import tiny_model
from tests.train.cases import run
from tests.trainer.cases import trainer

CPU = torch.device("cpu")
ONE = 4 * 8192


def floats(count: int = 8192) -> torch.Tensor:
    return torch.zeros(count)


def test_the_peak_of_a_scripted_sequence_is_exact_in_each_phase():
    """Loaded: 1. Prefill: 1 + 2 at once. Decode: 1 + 1 that is kept + 2. Scoring: 2 + 5. Backward: 2 + 3."""
    with MemoryProfile(CPU) as profile:
        with phases.phase("load"):
            base = floats()
        with phases.phase("rollout"):
            phases.at("rollout prefill")
            cache = [floats(), floats()]
            phases.holds("KV cache", cache)
            phases.at("rollout decode")
            cache.pop()
            states = floats(2 * 8192)
            del states
        with phases.phase("scoring"):
            scores = floats(5 * 8192)
            del scores
        with phases.phase("update"):
            phases.at("update backward")
            three = [floats() for _ in range(3)]
            phases.holds("gradients", three[:1])
            del three
        free = floats(100 * 8192)  # between the phases: of none
    rows = {row: {owner: n / ONE for owner, n in peak.items()} for row, peak in tensors(profile).items()}
    assert rows == {
        "load": {"shared base": 1},
        "rollout prefill": {"shared base": 1, "KV cache": 2},
        "rollout decode": {"shared base": 1, "KV cache": 1, "activations": 2},
        "scoring": {"shared base": 1, "KV cache": 1, "activations": 5},
        "update forward": {"shared base": 1, "KV cache": 1},
        "update backward": {"shared base": 1, "KV cache": 1, "gradients": 1, "activations": 2},
    }
    assert profile.rows["between the phases"].tracked == 102 * ONE and base.numel() == 8192 and free.numel()


def tensors(profile: MemoryProfile) -> dict[str, dict[str, int]]:
    """By row and owner, without the baseline and slack."""
    found: dict[str, dict[str, int]] = {}
    for row, peak in profile.rows.items():
        for (owner, _), count in peak.live.items() if row in PHASES else ():
            found.setdefault(row, {})[owner] = found.get(row, {}).get(owner, 0) + count
    return found


def test_a_phase_is_as_large_as_the_process_was_in_it_and_no_larger_for_one_before():
    if not memory.restart_peak(CPU):
        pytest.skip("this system keeps no peak for each phase")
    gc.collect()
    memory.trim_memory()  # what tests before this one left is not freed within it
    with MemoryProfile(CPU) as profile:
        with phases.phase("rollout"):
            large = torch.ones(100 << 20, dtype=torch.uint8)
            del large
        with phases.phase("scoring"):
            small = torch.ones(10 << 20, dtype=torch.uint8)
            del small
    table = profile.table()
    rollout, scoring = (table.total(row).expected for row in ("rollout prefill", "scoring"))
    assert 85 << 20 < rollout - scoring < 95 << 20
    assert sum(table.bytes["rollout prefill"].values()) == profile.rows["rollout prefill"].held == rollout
    assert memory.peak_bytes(CPU) >= rollout  # the most of the process is not forgotten


def test_without_a_peak_for_each_phase_the_table_says_so_and_has_no_slack(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "no" / "clear_refs")
    with MemoryProfile(CPU) as profile, phases.phase("scoring"):
        kept = floats()
    assert profile.table().bytes == {
        "scoring": {"activations": kept.nbytes, "process baseline": profile.baseline}
    }  # fmt: skip
    profile.print()
    assert "keeps no peak for each phase" in capsys.readouterr().out


@pytest.mark.parametrize("checkpointing", [False, True])
def test_owners_of_a_run_hold_what_their_tensors_take(tmp_path, checkpointing):
    """Of float32 models: weights and adapters, their gradients, two moments and a count for each, keys and values."""
    ppo = run(tmp_path)
    if checkpointing:
        ppo.policy.model.checkpoint_activations()
    with MemoryProfile(CPU) as profile:
        profile.attach(ppo)
        ppo.step()
    rows, config = tensors(profile), ppo.policy.model.base.config
    sizes = {role: sum(p.numel() for p in ppo.policy.model.parameters(role)) for role in ("policy", "critic")}
    base = sum(p.numel() for name, p in ppo.policy.model.base.named_parameters() if "lora" not in name)
    buffers = sum(b.nbytes for b in ppo.policy.model.base.buffers())
    longest = max(map(len, ppo.prompts.ids)) + ppo.config.response_length
    cache = 16 * longest * config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 4
    for row in rows:
        assert rows[row]["shared base"] == 4 * base + buffers
        assert rows[row]["policy adapter"] == 4 * sizes["policy"]
        assert rows[row]["critic adapter and head"] == 4 * sizes["critic"]
    assert rows["rollout decode"]["KV cache"] == cache
    assert "KV cache" not in rows["update forward"]
    trained = list(ppo.optimiser.parameters)
    assert rows["optimiser step"]["gradients"] == 4 * sum(p.numel() for p in trained) == 4 * sum(sizes.values())
    moments = 8 * sum(sizes.values()) + 4 * len(trained)
    assert profile.now()["optimiser"] == moments
    assert rows["optimiser step"]["optimiser"] >= moments
    assert rows["update backward"]["activations"] > rows["scoring"]["activations"]


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_run_has_the_same_numbers_with_a_profile_and_without(tmp_path, architecture):
    metrics = []
    for on in (False, True):
        torch.manual_seed(0)
        ppo = run(tmp_path, model=tiny_model(architecture))
        if not on:
            metrics.append([ppo.step(), ppo.step()])
            continue
        with MemoryProfile(CPU) as profile:
            profile.attach(ppo)
            metrics.append([ppo.step(), ppo.step()])
    assert metrics[0] == metrics[1]
    assert set(profile.table().phases) == set(PHASES) - {"load"}


def test_every_parameter_of_the_roles_has_one_owner(tmp_path):
    ppo, lora = run(tmp_path), LoraConfig(r=2, target_modules="all-linear")
    shared = ppo.policy.model
    shared.add_adapter("reward", lora, head=True)
    shared.add_adapter("sft", lora)
    ppo.reference = Policy(shared, "sft")
    sizes = {owner: sum(t.numel() for t in tensors) for owner, tensors in owners_of(ppo).items()}
    count = {name: sum(p.numel() for p in shared.parameters(name)) for name in ("policy", "critic", "reward", "sft")}
    assert sizes["policy adapter"] == count["policy"] + count["sft"]
    assert (sizes["critic adapter and head"], sizes["reward adapter and head"]) == (count["critic"], count["reward"])
    owned = [id(tensor) for tensors in owners_of(ppo).values() for tensor in tensors]
    everything = {id(p) for p in ppo.policy.model.base.parameters()}
    everything |= {id(p) for _, p in ppo.critic.named_parameters()}
    assert len(owned) == len(set(owned)) and everything <= set(owned)


def test_an_iteration_is_drawn_at_its_most_however_long_it_is():
    timeline = Timeline(width=1.0)
    for second in range(10 * STRETCHES):
        timeline.note(second, "scoring", 7 if second == 1234 else 1, {"activations": 7 if second == 1234 else 1})
    facts = timeline.as_json()
    assert timeline.width == 8 and len(facts["seconds"]) == 10 * STRETCHES / 8
    assert facts["bytes"]["activations"][1234 // 8] == max(facts["bytes"]["activations"]) == timeline.most == 7


def test_an_iteration_begins_where_an_update_was_the_last_phase(monkeypatch):
    """Three of scoring and update alone, as for rollouts from elsewhere: the second holds most, and is the one kept."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: 0.01 * next(ticks))
    with MemoryProfile(CPU) as profile:
        for size in (1, 3, 2):
            with phases.phase("scoring"):
                made = floats(size * 8192)
            with phases.phase("update"):
                del made
    rows = [row for row, _ in itertools.groupby(profile.iteration.as_json()["phase"])]
    assert profile.iteration.most == 3 * ONE and rows == ["scoring", "update forward"]


def test_a_part_is_the_current_one_until_its_phase_ends():
    phases.forget()
    phases.at("optimiser step")
    assert phases.current() is None  # outside of all phases
    with phases.phase("update"):
        assert phases.current() == "update"
        phases.at("update forward")
        phases.at("update backward")
        assert phases.current() == "update backward"
    assert phases.current() is None


def test_a_prediction_is_shown_beside_what_was_measured(capsys):
    with MemoryProfile(CPU) as profile, phases.phase("scoring"):
        profile.predicted = MemoryTable({"scoring": {"activations": 1 << 30}})
        made = floats()
    profile.print()
    shown = capsys.readouterr().out
    assert "Predicted and measured" in shown and "1.00" in shown and made.numel()
    assert profile.as_json()["predicted"]["bytes"] == {"scoring": {"activations": 1 << 30}}


def test_a_trainer_is_profiled_around_its_training_and_leaves_a_page_without_requests(tmp_path, capsys):
    given = trainer(tmp_path)
    with rlhf_fast.profiling.memory(given) as profile:
        given.train()
    assert "Memory at the peak of each phase" in capsys.readouterr().out
    facts = json.loads((tmp_path / "memory.json").read_text())
    assert MemoryTable.from_json(facts["measured"]) == profile.table()
    assert 0 < facts["measured"]["peak"] == max(peak.held for row, peak in profile.rows.items() if row in PHASES)
    page = (tmp_path / MEMORY_PAGE).read_text()
    assert not re.search(r"https?:|src=|<script|@import|url\(", page)
    for owner in profile.table().owners:
        assert owner in page


def test_where_nothing_ran_a_line_says_so_and_nothing_is_written(tmp_path, caplog):
    with rlhf_fast.profiling.memory(trainer(tmp_path)):
        pass
    assert "no phase of PPO ran" in caplog.text
    assert not list(tmp_path.glob("memory.*"))


def test_the_page_has_the_prediction_and_its_error(tmp_path):
    measured, predicted = MemoryTable(), MemoryTable(low={"scoring": 1 << 30}, high={"scoring": 4 << 30})
    measured.add("scoring", "activations", 2 << 30)
    predicted.add("scoring", "activations", 3 << 30)
    facts = {
        "device": "cpu", "measured": measured.as_json(), "predicted": predicted.as_json(), "baseline": 0,
        "largest": [{"owner": "activations", "line": "model/lora.py:1 <b>, mm", "bytes": 5}],
        "iteration": Timeline().as_json(), "seconds": {"scoring": 1.0},
    }  # fmt: skip
    page = write_memory_page(tmp_path, facts).read_text()
    assert "+50.0%" in page and '<g class="mark">' in page
    assert "&lt;b&gt;" in page and "<b>, mm" not in page


def test_of_a_cuda_device_torchs_own_record_is_kept_from_the_beginning_to_the_end(monkeypatch, tmp_path):
    """Without a card, so that only what is asked of torch is seen."""
    asked = []
    profile = MemoryProfile(CPU)
    profile.device = torch.device("cuda")
    monkeypatch.setattr("rlhf_fast.profiling.memory_profile.restart_peak", lambda _: True)
    monkeypatch.setattr("rlhf_fast.profiling.memory_profile.recent_peak", lambda _: 0)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **how: asked.append(how))
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: asked.append("snapshot") or {"segments": [7]})
    with profile, phases.phase("scoring"):
        asked.append("run")
        kept = floats()
    assert asked == [{"max_entries": 100_000}, "run", "snapshot", {"enabled": None}]
    profile.write(tmp_path)
    assert pickle.loads((tmp_path / "memory_snapshot.pickle").read_bytes()) == {"segments": [7]}
    with MemoryProfile(CPU) as plain, phases.phase("scoring"):
        kept = floats()
    del kept
    (tmp_path / "cpu").mkdir()
    plain.write(tmp_path / "cpu")
    assert [file.name for file in (tmp_path / "cpu").iterdir()] == ["memory.json"]
