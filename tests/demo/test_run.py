"""The demonstration from nothing to its report, on a tiny random model: what it leaves, and what a later run reuses."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_fast.cli import main
from rlhf_fast.demo.run import Ledger, is_finished, mark_finished, mark_unfinished, read_results
from tests.model_cases import CONFIGS
from tests.tiny_tokenizer import tiny_tokenizer

SECTIONS = ("Summary", "PPO", "Reward models on held-out pairs", "Calibration of the proxy", "Before and after")
STAGES = ("sft", "proxy_reward", "ppo", "gold_reward", "evaluation")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    config = copy.deepcopy(CONFIGS["llama"])
    config.max_position_embeddings = 512
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "run"
    assert run(base, folder) == 0
    return folder


def run(base, folder, *more: str) -> int:
    return main(["demo", "--quick", "--use_cpu", "--output_dir", str(folder), "--model_name_or_path", str(base), *more])


def test_every_stage_leaves_its_result_and_the_report_holds_all_sections(folder):
    assert all((folder / stage / "finished.json").is_file() for stage in STAGES)
    html = (folder / "report.html").read_text()
    for heading in (
        "Summary",
        "PPO",
        "Reward models on held-out pairs",
        "Calibration of the proxy",
        "Before and after",
    ):
        assert f"<h2>{heading}</h2>" in html
    results = read_results(folder)
    assert [reward.name for reward in results.comparison.rewards] == ["proxy_reward", "gold_reward"]
    assert len(results.comparison.pairs) == 36 and results.proxy.accuracy.count == 36 * 3
    assert len(results.ppo_metrics) == 2 and results.ppo_metrics[0]["objective/kl"] == 0


def test_a_later_run_reuses_what_is_there_and_says_the_same(folder, base, capsys):
    before = {stage: (folder / stage / "finished.json").stat().st_mtime_ns for stage in STAGES}
    report = (folder / "report.html").read_text()
    assert run(base, folder) == 0
    assert capsys.readouterr().out.count("reused") == len(STAGES)
    assert {stage: (folder / stage / "finished.json").stat().st_mtime_ns for stage in STAGES} == before
    assert (folder / "report.html").read_text() == report


def test_a_stage_runs_again_when_it_or_what_it_needs_was_told_otherwise():
    first, second, third = Ledger(), Ledger(), Ledger()
    first.key("sft", {"epochs": 1}, ()), second.key("sft", {"epochs": 1}, ()), third.key("sft", {"epochs": 2}, ())
    assert first.key("ppo", {"lr": 1}, ("sft",)) == second.key("ppo", {"lr": 1}, ("sft",))
    assert first.key("ppo", {"lr": 1}, ("sft",)) != third.key("ppo", {"lr": 1}, ("sft",))
    assert first.key("ppo", {"lr": 1}, ("sft",)) != first.key("ppo", {"lr": 2}, ("sft",))


def test_a_stage_that_was_cut_off_is_not_finished(tmp_path):
    assert not is_finished(tmp_path, "a")
    mark_finished(tmp_path, "a")
    assert is_finished(tmp_path, "a") and not is_finished(tmp_path, "b")
    mark_unfinished(tmp_path)
    assert not is_finished(tmp_path, "a")
