"""What a plan predicts, beside numbers worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import yaml
from transformers import LlamaConfig

from rlhf_fast.profiling.memory_table import GIB
from rlhf_fast.profiling.rates import Rates
from rlhf_fast.profiling.trace import Sequences
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.parse import parse_config
from rlhf_fast.train import plan_run
from rlhf_fast.train.config import PlanConfig, PPORunConfig
from rlhf_fast.train.plan import (
    Loads,
    Machine,
    Workload,
    card,
    least_seconds,
    loads,
    predict,
    read_workload,
    rows_of_cache,
)
from rlhf_fast.train.plan_model import read_facts
from rlhf_fast.train.plan_run import read_size, run_plan
from rlhf_fast.train.plan_solve import _cell, choose, fits, helps, largest, with_values
from tests.model_cases import CONFIGS

ADAPTER = 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)) * 2  # of rank 16: A and B of 7 products in 2 layers
MACHINE = Machine("a test", "cpu", 10e9, 400e6, Rates(1e9, 1e9))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    CONFIGS["llama"].save_pretrained(folder)
    return str(folder)


def run(model: str, **fields) -> PPORunConfig:
    return PPORunConfig(sft_model_path=model, dtype="float32", use_cpu=True, **fields)


def test_weights_by_hand(model):
    """Vocabulary 97, width 32, 48 inside, 2 layers, 4 heads of 8 with 2 of keys and values."""
    w = read_facts(run(model)).weights
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32
    base = 2 * 97 * 32 + 2 * layer + 32
    assert w.base == 4 * base + 2 * 4 * 4  # the angles of 4 pairs, and transformers' copy of them
    assert w.policy == 4 * ADAPTER and w.critic == 4 * (ADAPTER + 32 + 1)
    assert (w.trained, w.gradients) == (2 * ADAPTER + 33, 4 * (2 * ADAPTER + 33))
    assert read_facts(run(model)).cache_bytes == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, entries, bytes
    assert w.other_models == w.reward == 0


def test_all_weights_are_a_copy_with_gradients_of_its_own(model):
    w = read_facts(run(model, use_peft=False)).weights
    assert w.other_models == w.base - 32 and w.policy == 0  # without the angles
    assert w.gradients == w.other_models + w.critic


@pytest.mark.parametrize(("critic", "parameters"), [("policy_head", 33), ("reference_mlp", 64 * 32 + 32 + 33)])
def test_critics_without_a_forward_of_their_own(critic, parameters, model):
    facts = read_facts(run(model, critic=critic))
    assert facts.weights.critic == 4 * parameters
    load = Sequences(((20, 20),) * 8)
    alone = read_facts(run(model)).bytes_of("forward", load)
    assert 0.4 < facts.bytes_of("forward", load) / alone < 0.65  # one of two forwards is left


def test_micro_batches_of_a_rollout_by_hand(model):
    config = run(
        model, per_device_train_batch_size=4, response_length=6, max_tokens_per_micro_batch=30, num_ppo_epochs=1,
        max_rollout_batch=3,
    )  # fmt: skip
    found = loads(config, Workload(((10, 20, 4, 2),), seed=0), 6)
    assert found.prefill == Sequences(((10, 0), (20, 0)))  # 30 tokens, and 4 wait
    assert found.scoring.tokens == 26 and found.later.lengths  # 16, 26, and 18 for the last two
    assert (found.tokens, found.slots, found.rows, found.length) == (36 + 24, 24, 3, 26)


def test_the_cache_has_half_of_what_is_free_and_at_least_a_row(model):
    facts = read_facts(run(model))
    load = Loads(*[Sequences(())] * 4, 0, 0, rows=8, length=100)
    row = 100 * facts.cache_bytes
    assert rows_of_cache(run(model), facts, load, free=10.5 * row) == 5
    assert rows_of_cache(run(model), facts, load, free=100 * row) == 8
    assert rows_of_cache(run(model), facts, load, free=0) == 1
    assert rows_of_cache(run(model, max_kv_cache_gb=3.5 * row / 1e9), facts, load, free=0) == 3


def test_owners_of_a_phase_by_hand(model):
    config = run(model, per_device_train_batch_size=2, response_length=8, max_tokens_per_micro_batch=18)
    table = predict(config, MACHINE, Workload(((10, 10),), seed=0))
    w = read_facts(config).weights
    step, decode = table.bytes["optimiser step"], table.bytes["rollout decode"]
    assert step["optimiser"] == 2 * w.gradients and step["gradients"] == w.gradients
    assert step["buffers"] == 3 * w.gradients + 8 * 36 + 16 * (16 + 32)  # a copy to give up a step; a rollout
    assert decode["KV cache"] == 2 * 18 * read_facts(config).cache_bytes
    assert decode["process baseline"] == 400e6
    assert table.bytes["update backward"]["gradients"] == w.gradients  # of the micro-batch before
    assert all(table.total(p).low <= table.total(p).expected <= table.total(p).high for p in table.phases)


def test_one_micro_batch_a_step_has_no_gradients_before_it(model):
    config = run(model, per_device_train_batch_size=2, response_length=8)
    table = predict(config, MACHINE, Workload(((10, 10),), seed=0))
    assert table.bytes["update forward"]["gradients"] == 0


def test_the_least_time_of_an_iteration_by_hand(model):
    """A billion operations and bytes a second."""
    config = run(model, per_device_train_batch_size=2, response_length=8, num_ppo_epochs=3)
    seconds = least_seconds(config, MACHINE, Workload(((10, 10),), seed=0))
    linear, head = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48), 97 * 32
    assert seconds["rollout"] == pytest.approx((2 * 20 * linear + 8 * 4 * (linear + head)) / 1e9)  # 8 steps of 2 rows
    assert seconds["scoring"] == pytest.approx((2 * 36 * linear * 3 + 4 * 16 * head) / 1e9)
    assert seconds["update"] == pytest.approx(3 * (2 * 36 * linear * 2 * 2 + 4 * 16 * head) / 1e9)


# -- what fits


def plan(config: PPORunConfig, machine: Machine = MACHINE):
    return predict(config, machine, read_workload(config, None, 20))


@pytest.mark.parametrize("name", ["response_length", "max_tokens_per_micro_batch"])
def test_the_largest_value_fits_and_a_little_more_does_not(name, model):
    config = run(model, per_device_train_batch_size=64, response_length=40, max_tokens_per_micro_batch=1 << 20)
    machine = replace(MACHINE, bytes=plan(config).peak.high)
    value = largest(name, config, machine, None, 20)
    assert fits(plan(with_values(config, **{name: value}), machine), machine)
    if name == "response_length":
        assert value == 40
        assert not fits(plan(with_values(config, response_length=41), machine), machine)


def test_nothing_fits_a_machine_that_is_smaller_than_the_process(model):
    machine = replace(MACHINE, bytes=300e6)
    assert largest("per_device_train_batch_size", run(model), machine, None, 20) is None
    with pytest.raises(UsageError, match="does not fit a test, whatever max_tokens_per_micro_batch"):
        choose(run(model), machine, None, 20)


def test_a_cell_of_the_table_of_cards_is_the_most_sequences_that_fit(model):
    """All else equal, and all of them in one micro-batch and one cache."""
    config = run(model, num_ppo_epochs=1)
    shown = int(_cell(config, "16GB", True, 16384).replace(",", ""))

    def fit(sequences: int) -> bool:
        one = with_values(
            config, dtype="auto", response_length=8192, per_device_train_batch_size=sequences,
            max_tokens_per_micro_batch=1 << 30, max_rollout_batch=sequences, max_kv_cache_gb=1e6,
            activation_checkpointing=True, max_length=16384,
        )  # fmt: skip
        return fits(predict(one, card("16GB"), read_workload(one, None, 8192)), card("16GB"))

    assert 1 < shown < 1024
    assert fit(shown) and not fit(shown + shown // 64 + 1)


def test_what_helps_is_sorted_and_holds(model):
    config = run(
        model, use_peft=False, per_device_train_batch_size=64, response_length=40, max_tokens_per_micro_batch=4096
    )
    found = helps(config, MACHINE, None, 20)
    assert [saved for _, saved in found] == sorted((saved for _, saved in found), reverse=True)
    saved = dict(found)["activation_checkpointing=true: more time"]
    after = plan(with_values(config, activation_checkpointing=True)).peak.expected
    assert saved == pytest.approx(plan(config).peak.expected - after) and saved > 0


def test_only_memory_settings_are_chosen_and_tokens_go_before_recomputing(model):
    config = run(model, per_device_train_batch_size=64, response_length=40, max_tokens_per_micro_batch=2048)
    roomy = choose(config, MACHINE, None, 20)
    assert roomy == {"max_tokens_per_micro_batch": 2048, "activation_checkpointing": False, "max_rollout_batch": 32}
    fewer = plan(with_values(config, max_tokens_per_micro_batch=512)).peak.high
    assert choose(config, replace(MACHINE, bytes=fewer), None, 20) == roomy | {"max_tokens_per_micro_batch": 512}


# -- the verb


def planned(model: str, *more: str, **fields) -> plan_run.PlanResult:
    arguments = ["--model", model, "--dtype", "float32", "--from_config_only", "--prompt_length", "20", *more]
    return run_plan(parse_config(PlanConfig, arguments, prog="rlhf-fast plan"))


def test_the_status_says_whether_it_fits(model, capsys):
    fit = planned(model, "--ram", "20GB", "--per_device_train_batch_size", "2", "--response_length", "8")
    assert fit.status == 0 and str(fit).startswith("it fits: the peak is ")
    shown = capsys.readouterr().out
    assert "process baseline" in shown and "response_length" in shown and "GiB less" in shown
    small = planned(model, "--ram", "100MB", "--per_device_train_batch_size", "2", "--response_length", "8")
    assert small.status == 3 and str(small).startswith("it does not fit: ")


def test_what_is_applied_is_a_config_that_fits(model, tmp_path):
    file, out = tmp_path / "ppo.yaml", tmp_path / "out.yaml"
    file.write_text(yaml.safe_dump({"dataset_name": "prompts.jsonl", "kl_coef": 0.1, "max_tokens_per_micro_batch": 64}))
    planned(model, "--config", str(file), "--ram", "20GB", "--apply", str(out), "--response_length", "8")
    written = yaml.safe_load(out.read_text())
    assert written["kl_coef"] == 0.1 and written["sft_model_path"] == model
    config = parse_config(PPORunConfig, ["--config", str(out)], prog="rlhf-fast ppo")
    assert config.max_tokens_per_micro_batch == 1024 and config.response_length == 8  # as many as make it faster


@pytest.mark.parametrize("size", ["24", "lots", "0GB", "GB"])
def test_a_size_that_cannot_be_read_is_named(size):
    with pytest.raises(UsageError, match=f"ram='{size}' is no size"):
        read_size("ram", size)


def test_sizes():
    assert read_size("gpu", "24GB") == 24e9 and read_size("gpu", "22.5 gib") == 22.5 * GIB


def test_a_hub_name_that_cannot_be_read_here_says_what_is_enough():
    with pytest.raises(UsageError, match=r"cannot read the config of 'nobody/nothing'[\s\S]*config\.json is enough"):
        planned("nobody/nothing")


def test_a_card_and_ram_together_are_refused(model):
    with pytest.raises(UsageError, match="ram='1GB' cannot be used: expected nothing beside gpu"):
        planned(model, "--gpu", "24GB", "--ram", "1GB")


SEVEN_BILLION = """
import sys, time
from rlhf_fast.runtime.memory import peak_bytes
from rlhf_fast.runtime.parse import parse_config
from rlhf_fast.train.config import PlanConfig
from rlhf_fast.train.plan_run import run_plan
given = "--gpu 24GB --from_config_only --prompt_length 512 --response_length 512 --activation_checkpointing true"
print(run_plan(parse_config(PlanConfig, ["--model", sys.argv[1], *given.split()], prog="rlhf-fast plan")))
print(time.process_time(), peak_bytes(None))
"""


def test_a_model_of_7_billion_is_planned_in_30_seconds_and_2_gb(tmp_path):
    """Llama-7B's shapes: 13 GB that nobody has here. Seconds of the processor, as others may use it too."""
    LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        dtype="bfloat16",
    ).save_pretrained(tmp_path)  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SEVEN_BILLION, tmp_path], check=True, capture_output=True, text=True)
    said, numbers = done.stdout.splitlines()[-2:]
    seconds, held = map(float, numbers.split())
    assert said.startswith("it fits: the peak is ")
    assert seconds < 30 and held < 2e9
