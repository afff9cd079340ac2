"""Where policy, reference, critic and reward start after each stage, and what a run leaves unchanged."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf_fast import PPORunConfig, SFTConfig, UsageError, run_ppo, run_sft
from rlhf_fast.model.load import load_shared
from rlhf_fast.preferences.reward_model import run_reward
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.roles import build_roles
from tests.model_cases import tiny_model
from tests.preferences.cases import config as reward_config
from tests.preferences.cases import rows as ranked_rows
from tests.preferences.cases import write_rows
from tests.tiny_tokenizer import tiny_tokenizer

COMMON = {"use_cpu": True, "disable_tqdm": True, "dtype": "float32", "learning_rate": 1e-2}
LORA = {"lora_r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """SFT as an adapter and as a full model, and a reward adapter on each."""
    root = tmp_path_factory.mktemp("stages")
    tiny_model().save_pretrained(root / "base")
    tiny_tokenizer().save_pretrained(root / "base")
    rows = [{"prompt": f"w{i} w{i + 1}", "completion": "w7 w8 w9"} for i in range(16)]
    data = write_rows(root / "rows.jsonl", rows)
    comparisons = write_rows(root / "ranked.jsonl", ranked_rows(8))
    for name, use_peft in (("lora", True), ("full", False)):
        sft = SFTConfig(
            model_name_or_path=str(root / "base"), dataset_name=data, output_dir=str(root / name), use_peft=use_peft,
            num_train_epochs=3, **COMMON, **(LORA if use_peft else {}),
        )  # fmt: skip
        run_sft(sft)
        options = {"dataset_name": comparisons, "output_dir": str(root / f"{name}_reward"), "eval_fraction": 0.0}
        run_reward(reward_config(model_name_or_path=str(root / name), num_train_epochs=2, **options))
    return root


def ppo_config(folder, sft: str, **options) -> PPORunConfig:
    defaults = {
        "sft_model_path": str(folder / sft), "dataset_name": str(folder / "rows.jsonl"), "response_length": 5,
        "total_episodes": 16, "output_dir": str(folder / "ppo"), "temperature": 1.0,
    }  # fmt: skip
    return PPORunConfig(**(defaults | COMMON | options))


def adapter(model, name: str) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in model.named_parameters(name)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def base_weights(model) -> dict[str, torch.Tensor]:
    found = {n: p for n, p in model.base.named_parameters() if ".lora_" not in n}
    return {name.replace(".base.", "."): value.detach().clone() for name, value in found.items()}


def test_after_lora_sft_the_policy_is_a_copy_of_its_adapter_and_the_reference_is_that_adapter(folder):
    roles = build_roles(ppo_config(folder, "lora"))
    saved, name = load_shared(str(folder / "lora"), dtype=torch.float32)
    assert roles.policy.model is roles.reference.model is roles.critic.model
    assert (roles.reference.adapter, roles.policy.adapter) == ("sft", "policy")
    assert same(adapter(roles.policy.model, "policy"), adapter(saved, name))
    assert any(value.abs().max() > 0 for key, value in adapter(saved, name).items() if "lora_B" in key)
    policy = {id(p) for p in roles.policy.model.parameters("policy")}
    assert policy.isdisjoint(id(p) for p in roles.policy.model.parameters("sft"))


def test_after_full_sft_the_policy_is_a_fresh_adapter_and_the_reference_the_sft_model_not_the_base(folder):
    roles = build_roles(ppo_config(folder, "full", **LORA))
    assert roles.policy.model is roles.reference.model and roles.reference.adapter is None
    assert all(value.abs().max() == 0 for key, value in roles.policy.named_parameters() if "lora_B" in key)
    tuned, base = (AutoModelForCausalLM.from_pretrained(folder / name).state_dict() for name in ("full", "base"))
    weights = base_weights(roles.reference.model)
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(weights[key], tuned[key]) and not torch.equal(weights[key], base[key])


def test_full_fine_tuning_trains_a_copy_of_its_own_and_the_reference_keeps_the_shared_base(folder):
    roles = build_roles(ppo_config(folder, "full", use_peft=False))
    assert roles.policy.model is not roles.reference.model and roles.critic.model is roles.reference.model
    policy, reference = base_weights(roles.policy.model), base_weights(roles.reference.model)
    assert same(policy, reference)
    assert all(p.requires_grad for _, p in roles.policy.named_parameters())
    assert not any(p.requires_grad for n, p in roles.reference.model.base.named_parameters() if ".lora_" not in n)


@pytest.mark.parametrize("sft", ["lora", "full"])
def test_the_critic_starts_as_the_reward_adapter_with_its_head_and_both_go_their_own_ways(folder, sft):
    roles = build_roles(ppo_config(folder, sft, reward_model_path=str(folder / f"{sft}_reward")))
    shared = roles.critic.model
    assert roles.reward is not None and same(adapter(shared, "critic"), adapter(shared, "reward"))
    assert roles.critic.head.weight.abs().max() > 0
    roles.critic.head.weight.data.add_(1)
    assert not same(adapter(shared, "critic"), adapter(shared, "reward"))


def test_without_a_reward_adapter_the_critic_is_fresh_and_predicts_zero(folder):
    roles = build_roles(ppo_config(folder, "lora"))
    assert roles.reward is None
    assert all(value.abs().max() == 0 for key, value in roles.critic.named_parameters() if "lora_B" in key)
    assert roles.critic.head.weight.abs().max() == roles.critic.head.bias == 0


@pytest.mark.parametrize(("sft", "use_peft"), [("lora", True), ("full", True), ("full", False)])
def test_a_run_starts_at_kl_zero_and_moves_the_policy_only(folder, tmp_path, monkeypatch, sft, use_peft):
    opened = []
    monkeypatch.setattr("rlhf_fast.train.ppo_run.build_roles", lambda c: opened.append(build_roles(c)) or opened[0])
    before = build_roles(ppo_config(folder, sft, use_peft=use_peft))
    options = {"use_peft": use_peft, "reward_model_path": str(folder / f"{sft}_reward"), "output_dir": str(tmp_path)}
    run_ppo(ppo_config(folder, sft, **options))
    metrics, roles = read_metrics(tmp_path), opened[0]
    assert metrics[0]["objective/kl"] == 0 and metrics[1]["objective/kl"] != 0
    assert same(base_weights(before.reference.model), base_weights(roles.reference.model))
    for name in {roles.reference.adapter, "reward"} - {None}:
        saved, own = load_shared(str(folder / (sft if name == "sft" else f"{sft}_reward")), dtype=torch.float32)
        assert same(adapter(roles.reference.model, name), adapter(saved, own))
    assert not same(dict(before.policy.named_parameters()), dict(roles.policy.named_parameters()))


def test_sft_may_go_on_from_an_sft_adapter_and_its_result_opens_on_the_same_base(folder, tmp_path):
    options = {"model_name_or_path": str(folder / "lora"), "dataset_name": str(folder / "rows.jsonl")}
    run_sft(SFTConfig(output_dir=str(tmp_path / "more"), **options, **COMMON))
    assert json.loads((tmp_path / "more" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        folder / "base"
    )
    shared, name = load_shared(str(tmp_path / "more"), dtype=torch.float32)
    first, own = load_shared(str(folder / "lora"), dtype=torch.float32)
    assert adapter(shared, name).keys() == adapter(first, own).keys()
    assert not same(adapter(shared, name), adapter(first, own))


def test_sft_that_goes_on_trains_the_chosen_layers_only(folder, tmp_path):
    options = {"model_name_or_path": str(folder / "lora"), "dataset_name": str(folder / "rows.jsonl")}
    run_sft(SFTConfig(output_dir=str(tmp_path), lora_layers=[1], **options, **COMMON))
    before, after = (adapter(*load_shared(str(path), dtype=torch.float32)) for path in (folder / "lora", tmp_path))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if ".layers.1." in key}


def test_lora_layers_are_honoured_where_the_policy_is_a_copy(folder):
    roles = build_roles(ppo_config(folder, "lora", lora_layers=[1]))
    trained = [name for name, p in roles.policy.named_parameters() if p.requires_grad]
    assert trained and all(".layers.1." in name for name in trained)


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("ppo", {"sft": "lora", "lora_r": 9}, "lora_r=9 has no effect"),
        ("ppo", {"sft": "lora", "lora_layers": [7]}, "decoder layers 0 to 1"),
        ("ppo", {"sft": "lora", "use_peft": False}, "sft_model_path is an adapter folder"),
        ("ppo", {"sft": "lora_reward"}, "is a reward adapter"),
        ("sft", {"lora_r": 9}, "lora_r=9 has no effect"),
        ("sft", {"use_peft": False}, "is an adapter folder"),
    ],
)
def test_choices_that_the_stage_before_rules_out_are_refused(folder, tmp_path, stage, options, message):
    with pytest.raises(UsageError, match=message):
        if stage == "ppo":
            options = dict(options)
            build_roles(ppo_config(folder, options.pop("sft"), **options))
        else:
            paths = {"model_name_or_path": str(folder / "lora"), "dataset_name": str(folder / "rows.jsonl")}
            run_sft(SFTConfig(output_dir=str(tmp_path), **paths, **COMMON, **options))
