"""LoRA reward adapters as PEFT, and so TRL's reward trainer, writes them: a classifier's, with `score` in its file."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from rlhf_fast import ExportConfig, UsageError, run_evaluate, run_export, run_ppo
from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.model.adapter_files import load_adapter, save_adapter
from rlhf_fast.model.roles import adapter_critic, sequence_scores
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.train.roles import build_roles
from tests.model_cases import ARCHITECTURES, tiny_model, tokens
from tests.resume.cases import config, prepare

SEQUENCES = tokens(5, 9, 12)


def write(folder, base: str, architecture: str = "llama", *, labels: int = 1, **options) -> PeftModel:
    """The adapter of a classifier on the base at `base`; returns the PEFT model itself."""
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=labels, pad_token_id=0, attn_implementation="eager"
    )  # fmt: skip
    given = {"r": 4, "lora_alpha": 12, "task_type": "SEQ_CLS", "target_modules": "all-linear"} | options
    adapted = get_peft_model(model, LoraConfig(**given)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name or "score.modules_to_save" in name:
            parameter.data.normal_(0, 0.2)
    adapted.save_pretrained(folder)
    return adapted


@torch.no_grad()
def scores(model: PeftModel) -> list[float]:
    """PEFT's own forward, text by text: the last token is read, as none is the pad token."""
    return [float(model(input_ids=torch.tensor([ids])).logits) for ids in SEQUENCES]


def ours(base: str, folder, architecture: str = "llama") -> list[float]:
    shared = SharedModel(tiny_model(architecture))
    load_adapter(shared, folder, "reward")
    return sequence_scores(adapter_critic(shared, "reward"), SEQUENCES, 2048).tolist()


@pytest.fixture
def base(tmp_path) -> str:
    tiny_model().save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("saved", [None, ["score"]])
def test_scores_are_those_of_pefts_own_forward(tmp_path, architecture, saved):
    tiny_model(architecture).save_pretrained(tmp_path / "base")
    model = write(tmp_path / "reward", str(tmp_path / "base"), architecture, modules_to_save=saved)
    wanted = scores(model)
    assert ours(str(tmp_path / "base"), tmp_path / "reward", architecture) == pytest.approx(wanted, abs=1e-5)
    assert len({round(score, 3) for score in wanted}) == 3


@pytest.mark.parametrize("key", ["score.modules_to_save.weight", "score.modules_to_save.default.weight"])
def test_other_names_of_the_score_layer_are_read_too(tmp_path, base, key):
    wanted = scores(write(tmp_path / "reward", base))
    file = tmp_path / "reward" / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors[f"base_model.model.{key}"] = tensors.pop("base_model.model.score.weight")
    save_file(tensors, file)
    assert ours(base, tmp_path / "reward") == pytest.approx(wanted, abs=1e-5)


def test_an_adapter_that_does_not_state_its_task_is_read_by_its_weights(tmp_path, base):
    wanted = scores(write(tmp_path / "reward", base, task_type=None, modules_to_save=["score"]))
    assert ours(base, tmp_path / "reward") == pytest.approx(wanted, abs=1e-5)


def test_dropout_is_left_out_and_a_line_says_so(tmp_path, base, caplog):
    wanted = scores(write(tmp_path / "reward", base, lora_dropout=0.05))
    assert ours(base, tmp_path / "reward") == pytest.approx(wanted, abs=1e-5)
    assert "lora_dropout=0.05 of" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": 2}, r"score of shape \(2, 32\); expected one output"),
        ({"modules_to_save": ["score", "embed_tokens"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora=True"),
    ],
)
def test_what_is_no_reward_or_not_served_is_refused(tmp_path, base, options, message):
    write(tmp_path / "reward", base, **options)
    with pytest.raises(UsageError, match=message):
        ours(base, tmp_path / "reward")


def test_a_classifiers_adapter_whose_score_was_not_saved_is_no_reward_model(tmp_path):
    folder = prepare(tmp_path)
    write(tmp_path / "reward", f"{folder}/base")
    file = tmp_path / "reward" / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "score" not in k}, file)
    with pytest.raises(UsageError, match="has no scalar head, so it is no reward model; expected head"):
        run_ppo(config("ppo", folder, tmp_path / "out", reward_model_path=f"{tmp_path}/reward"))


def test_ppo_and_evaluate_take_it_as_reward_and_the_critic_starts_as_its_copy(tmp_path):
    folder = prepare(tmp_path)
    model = write(tmp_path / "reward", f"{folder}/base")
    options = {"reward_model_path": f"{tmp_path}/reward", "total_episodes": 6}
    settings = config("ppo", folder, tmp_path / "out", **options)
    roles = build_roles(settings)
    assert sequence_scores(roles.critic, SEQUENCES, 2048).tolist() == pytest.approx(scores(model), abs=1e-5)
    run_ppo(settings)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rollouts.jsonl").open()]
    assert len(rows) == 6 and all(set(row["scores"]) == {"reward_model"} for row in rows)
    result = run_evaluate(EvaluateConfig(
        model_path=f"{tmp_path}/out", baseline_path=f"{folder}/sft_adapter", reward_model_paths=[f"{tmp_path}/reward"],
        dataset_name=f"{folder}/demonstrations.jsonl", max_prompts=3, response_length=4, use_cpu=True, dtype="float32",
        output_dir=f"{tmp_path}/evaluation",
    ))  # fmt: skip
    assert [reward.name for reward in result.rewards] == ["reward"]


def test_it_is_exported_with_its_scores_and_saved_again_as_an_adapter_of_ours(tmp_path):
    folder = prepare(tmp_path)
    model = write(tmp_path / "reward", f"{folder}/base")
    out = run_export(ExportConfig(model_path=f"{tmp_path}/reward", output_dir=f"{tmp_path}/out"))
    merged = AutoModelForSequenceClassification.from_pretrained(out).eval()
    with torch.no_grad():
        found = [float(merged(input_ids=torch.tensor([ids])).logits) for ids in SEQUENCES]
    assert found == pytest.approx(scores(model), abs=1e-5)
    shared = SharedModel(tiny_model())
    load_adapter(shared, tmp_path / "reward", "reward")
    save_adapter(copy.copy(shared), "reward", tmp_path / "again", base=f"{folder}/base")
    assert json.loads((tmp_path / "again" / "adapter_config.json").read_text())["modules_to_save"] is None
    assert ours(f"{folder}/base", tmp_path / "again") == pytest.approx(scores(model), abs=1e-5)
