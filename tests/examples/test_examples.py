"""The examples: every config is one of its stage, and the real data holds what their README says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from rlhf_fast.cli import VERBS, load
from rlhf_fast.data.readers import read_comparisons, read_demonstrations, read_prompts
from rlhf_fast.data.schema import prompt_key
from rlhf_fast.preferences.cross_validate import CrossValidation
from rlhf_fast.preferences.metrics import Pair, calibration, measure, pair_accuracy
from rlhf_fast.rewards.chosen import choose_rewards
from rlhf_fast.rewards.endpoint import EndpointReward
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.runtime.parse import parse_config

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DATA = ROOT.parent / "shared" / "data"
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))
VERB_OF = {"sft": "sft", "reward": "reward", "ppo": "ppo", "evaluate": "evaluate"}
real_data = pytest.mark.skipif(not DATA.is_dir(), reason="the data sets are not beside this clone (../shared/data)")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_value_of_a_config_reaches_the_config_of_its_verb(path):
    verb = VERBS[VERB_OF[path.name.split("_")[0]]]
    config = parse_config(load(verb.config), ["--config", str(path)], prog="test")
    for name, value in yaml.safe_load(path.read_text()).items():
        found = getattr(config, name)
        assert getattr(found, "value", found) == value, name


def test_each_stage_reads_what_an_earlier_one_writes():
    values = {path.name: yaml.safe_load(path.read_text()) for path in CONFIGS}
    written = {config["output_dir"] for config in values.values()}
    assert len(written) == len(values)
    for config in values.values():
        models = [
            config.get(key) for key in ("model_name_or_path", "sft_model_path", "reward_model_path", "model_path")
        ]
        for model in [*models, *config.get("reward_model_paths", [])]:
            assert model in (None, "runs/base", *written)


def test_the_readme_names_every_example():
    text = (EXAMPLES / "README.md").read_text()
    for path in [*CONFIGS, *EXAMPLES.glob("*.py")]:
        assert f"examples/{path.name}" in text, path.name


def test_the_endpoint_of_the_example_is_a_reward():
    """ "I am sorry" is three words: 1 - 0.03."""
    command = [sys.executable, str(EXAMPLES / "reward_endpoint.py"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert server.stdout is not None
        reward = EndpointReward(server.stdout.readline().split()[-1])
        batch = RewardBatch(["late?", "late?"], ["I am sorry", "no"], [[1], [2]])
        assert reward.score(batch).tolist() == pytest.approx([0.97, -0.01])
        batch.columns = {"wanted": ["am", "parcel"], "other": [1, None]}
        assert reward.score(batch).tolist() == pytest.approx([1.97, -0.01])
    finally:
        server.kill()
        server.communicate()


def test_the_functions_of_the_example_score_what_they_say():
    names = [f"{EXAMPLES}/reward_functions.py:{name}" for name in ("short", "thinks_first", "right")]
    responses = ["<think> easy </think> 4", "five words are not few"]
    chats = [[{"role": "user", "content": "2 + 2"}], [{"role": "user", "content": "2 + 3"}]]
    batch = RewardBatch(["", ""], responses, [[1], [2]], {"answer": ["4", None]}, chats, [[1], [2]])
    scores = [source.score(batch) for source, _ in choose_rewards(names, None, timeout=None)]
    assert scores[0].tolist() == pytest.approx([-0.04, -0.05]) and scores[1].tolist() == [1.0, 0.0]
    assert scores[2][0] == 1.0 and scores[2][1].isnan()


@real_data
def test_sgd_has_384_dialogues():
    read = read_demonstrations(DATA / "sgd_dialogues.jsonl", format="sgd")
    assert (len(read.rows), len(read.skipped)) == (384, 0)


@real_data
def test_the_first_80_oasst_trees_have_168_rankings_and_no_prompt_of_the_last_20():
    trees = [json.loads(line) for line in (DATA / "oasst_en_100_tree.jsonl").read_text().splitlines()]
    assert len(trees) == 100
    assert len(read_comparisons(trees[:80], format="oasst").rows) == 168
    train, heldout = (read_prompts(part, format="oasst").rows for part in (trees[:80], trees[80:]))
    assert (len(train), len(heldout)) == (369, 106)
    assert not {prompt_key(row.prompt) for row in train} & {prompt_key(row.prompt) for row in heldout}


@real_data
def test_pandalm_has_993_clean_rows_of_170_prompts_and_a_majority_in_888():
    rows = json.loads((DATA / "pandalm_testset-v1.json").read_text())
    read = read_comparisons(rows, format="pandalm", on_bad_row="skip")
    assert (len(rows), len(read.rows), len(read.skipped)) == (999, 993, 6)
    assert len({prompt_key(row.prompt) for row in read.rows}) == 170
    has_majority = script("reward_cross_validation").has_majority
    judged = read_comparisons([row for row in rows if has_majority(row)], format="pandalm", on_bad_row="skip").rows
    assert len(judged) == 888 and all(row.ranks[0] != row.ranks[1] for row in judged)
    pairs = [
        Pair(*(row.responses if row.ranks[0] < row.ranks[1] else reversed(row.responses)), margin=1.0) for row in judged
    ]
    assert measure(pairs).most_distinct_words_wins.value == pytest.approx(0.703, abs=5e-4)


def test_votes_of_one_annotator_and_ties_are_no_majority():
    has_majority = script("reward_cross_validation").has_majority
    cases = {(1, 1, 2): True, (2, 2, 0): True, (1, 1, 1): True, (1, 0, 0): False, (1, 2, 0): False, (0, 0, 0): False}
    for votes, expected in cases.items():
        assert has_majority({f"annotator{i}": vote for i, vote in enumerate(votes, 1)}) is expected, votes


def test_the_table_shows_the_pooled_accuracy_the_rules_and_every_fold():
    pairs = [Pair("a b c", "a a a a", 0.5), Pair("a", "b c", -0.5), Pair("a b", "a", 2.0)]
    result = CrossValidation(measure(pairs), pair_accuracy(pairs), [pair_accuracy(pairs[:1]), pair_accuracy(pairs[1:])])
    text = script("reward_cross_validation").table(result)
    assert "reward model" in text and "most distinct words wins" in text and "longest wins" in text
    assert "fold 1" in text and "fold 2" in text and str(pair_accuracy(pairs)) in text
    assert f"{calibration(pairs).error:.3f}" in text


def test_the_kernel_in_another_trainer_gives_the_same_losses_and_keeps_less(capsys):
    script("kernels_in_your_trainer").main()  # asserts that the losses agree
    kept = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert len(kept) == 6 and all(ours < theirs / 5 for theirs, ours in zip(kept[::2], kept[1::2], strict=True))
