"""An evaluation from folders on disk to its two files."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from peft import LoraConfig

from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.evaluate.models import open_models
from rlhf_fast.evaluate.run import run_evaluate
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.parse import parse_config
from tests.model_cases import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer


def save(shared: SharedModel, name: str, folder, base, *, head: bool = False) -> str:
    shared.add_adapter(name, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"), head=head)
    with torch.no_grad():
        for parameter in shared.parameters(name):
            parameter.normal_(0, 0.1)
    save_adapter(shared, name, folder, base=str(base))
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model, tokenizer = tiny_model(), tiny_tokenizer()
    for base in ("base", "other"):
        model.save_pretrained(root / base)
        tokenizer.save_pretrained(root / base)
    torch.manual_seed(0)
    shared = SharedModel(model)
    for name in ("sft", "ppo"):
        save(shared, name, root / name, root / "base")
    for name, base in (("proxy", "base"), ("gold", "base"), ("foreign", "other")):
        save(shared, name, root / name, root / base, head=True)
    (root / "ppo" / "metrics.jsonl").write_text('{"step": 1, "objective/scores": 0.5}\n')
    rows = [{"prompt": [{"role": "user", "content": f"w1 w{i}"}]} for i in range(4)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def config(folders, **options) -> EvaluateConfig:
    defaults = {
        "model_path": str(folders / "ppo"), "baseline_path": str(folders / "sft"),
        "reward_model_paths": [str(folders / "proxy"), str(folders / "gold")],
        "dataset_name": str(folders / "prompts.jsonl"), "response_length": 5, "use_cpu": True, "dtype": "float32",
        "output_dir": str(folders / "evaluation"),
    }  # fmt: skip
    return EvaluateConfig(**(defaults | options))


def test_an_evaluation_writes_its_numbers_and_its_page(folders):
    result = run_evaluate(config(folders))
    saved = json.loads((folders / "evaluation" / "evaluation.json").read_text())
    assert (saved["first_name"], saved["second_name"]) == ("sft", "ppo")
    assert [r["name"] for r in saved["rewards"]] == ["proxy", "gold"]
    assert saved["kl"] == result.kl and saved["rewards"][0]["win_rate"]["count"] == 4
    page = (folders / "evaluation" / "report.html").read_text()
    assert "ppo against sft" in page and "<h2>Training</h2>" in page and "w1 w3" in page


def test_max_prompts_takes_the_first(folders):
    pairs = run_evaluate(config(folders, max_prompts=2, temperature=0.0)).pairs
    assert [pair.prompt[0]["content"] for pair in pairs] == ["w1 w0", "w1 w1"]


def test_a_single_prompt_has_no_interval_and_the_file_stays_json(folders):
    run_evaluate(config(folders, max_prompts=1, output_dir=str(folders / "single")))
    text = (folders / "single" / "evaluation.json").read_text()
    assert json.loads(text)["rewards"][0]["difference"]["high"] is None
    assert "Infinity" not in text and "NaN" not in text


def test_one_base_serves_all_and_each_role_has_its_own_adapter(folders):
    models = open_models(config(folders), torch.float32, torch.device("cpu"))
    reward = models.rewards[1].model  # type: ignore[attr-defined]
    assert models.policy.model is models.baseline.model is reward.model
    assert len({models.policy.adapter, models.baseline.adapter, reward.adapter}) == 3


def test_without_a_baseline_an_adapter_is_compared_with_its_base(folders):
    models = open_models(config(folders, baseline_path=None), torch.float32, torch.device("cpu"))
    assert models.baseline.adapter is None and models.names == ("base", "ppo")


def test_functions_judge_beside_reward_models_or_alone_under_their_names(folders, tmp_path, monkeypatch):
    """Named in the config and given from Python; prompts are "w1 w0" to "w1 w3", of which `last` judges the last."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    code = "def proxy(responses, **columns):\n    return [float(len(text.split())) for text in responses]\n"
    (tmp_path / "judge_of_evaluation.py").write_text(code)

    def last(prompts, completions, **kwargs):
        return [2.0 if prompt[-1]["content"] == "w1 w3" else None for prompt in prompts]

    named = {"reward_funcs": ["judge_of_evaluation:proxy"], "output_dir": str(tmp_path / "out")}
    both = run_evaluate(config(folders, **named), [last])
    assert [reward.name for reward in both.rewards] == ["proxy", "gold", "proxy_2", "last"]
    alone = run_evaluate(config(folders, reward_model_paths=[], **named))
    (words,) = alone.rewards
    first, second = ([len(getattr(pair, side).split()) for pair in alone.pairs] for side in ("first", "second"))
    assert (words.name, words.first_mean, words.second_mean) == ("proxy", sum(first) / 4, sum(second) / 4)
    assert words.difference == both.rewards[2].difference
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [reward["name"] for reward in saved["rewards"]] == ["proxy"]
    assert [pair["second_scores"] for pair in saved["pairs"]] == [{"proxy": float(count)} for count in second]


def test_a_reward_is_compared_over_the_prompts_that_it_judges(folders, tmp_path):
    def last(prompts, completions, **kwargs):
        return [2.0 if prompt[-1]["content"] == "w1 w3" else None for prompt in prompts]

    result = run_evaluate(config(folders, output_dir=str(tmp_path / "out")), [last])
    assert result.rewards[2].win_rate.count == 1 and result.rewards[2].second_mean == 2.0
    assert [pair.first_scores["last"] for pair in result.pairs] == [None, None, None, 2.0]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "judges 1 of 4 prompts" in page and page.count("last <b>not judged</b>") == 6
    assert page.count("last <b>2.00</b>") == 2 and "judges 4 of 4" not in page

    def nothing(responses, **columns):
        return [None] * len(responses)

    with pytest.raises(UsageError, match="reward 'nothing' judges no prompt's two responses"):
        run_evaluate(config(folders, output_dir=str(tmp_path / "none")), [nothing])


def test_rewards_may_read_special_tokens_and_the_report_shows_them(folders, tmp_path):
    seen = []

    def spy(responses, response_ids, **columns):
        seen.append((responses, response_ids))
        return [0.0] * len(responses)

    options = {"response_length": 40, "temperature": 1.5, "max_prompts": 4, "output_dir": str(tmp_path / "out")}
    result = run_evaluate(config(folders, reward_special_tokens=True, **options), [spy])
    words = {i: word for word, i in tiny_tokenizer().get_vocab().items()}
    texts = [text for responses, _ in seen for text in responses]
    ids = [own[:-1] if own[-1] == 2 else own for _, all_ids in seen for own in all_ids]
    assert [text.split() for text in texts] == [[words[i] for i in own] for own in ids]
    assert any(i < 3 for own in ids for i in own)
    assert texts == [pair.first for pair in result.pairs] + [pair.second for pair in result.pairs]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_model_paths": []}, "needs model_path.*reward_funcs, or a function"),
        ({"reward_special_tokens": True}, "false where the only rewards are adapters"),
        ({"reward_funcs": ["nowhere_to_be_found:f"]}, "No module named 'nowhere_to_be_found'"),
        ({"model_path": "base", "baseline_path": None}, "set baseline_path"),
        ({"reward_model_paths": ["foreign"]}, "base of neither policy"),
        ({"reward_model_paths": ["sft"]}, "no scalar head"),
        ({"response_length": 61}, "held-out prompt 1"),
        ({"response_length": 64}, "response_length=64 leaves no room"),
        ({"max_prompts": 0}, "max_prompts=0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
    ],
)
def test_what_cannot_be_evaluated_says_why(folders, options, message):
    paths = {"model_path": lambda p: str(folders / p), "reward_model_paths": lambda ps: [str(folders / p) for p in ps]}
    options = {key: paths[key](value) if key in paths else value for key, value in options.items()}
    with pytest.raises(UsageError, match=message):
        run_evaluate(config(folders, **options))


def test_weights_mean_nothing_in_an_evaluation_and_columns_are_checked(folders):
    def words(responses, **columns):
        return [0.0] * len(responses)

    with pytest.raises(UsageError, match="has a weight; expected rewards without"):
        run_evaluate(config(folders), [(words, 2.0)])
    with pytest.raises(UsageError, match="missing a required argument: 'target'"):
        run_evaluate(config(folders), [lambda responses, target: []])


def test_the_command_line_reads_the_config():
    arguments = ["--model_path", "ppo", "--reward_model_paths", "a", "b", "--max_prompts", "3"]
    parsed = parse_config(EvaluateConfig, arguments, prog="evaluate")
    assert (parsed.model_path, parsed.reward_model_paths, parsed.max_prompts) == ("ppo", ["a", "b"], 3)
