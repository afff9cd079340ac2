"""What a script hands over stays its own: models generate, save, merge and train again, with what was trained."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, TrainerCallback

from rlhf_fast import UsageError
from rlhf_fast.rewards.source import RewardBatch
from tests.model_cases import tokens
from tests.trainer.cases import classifier, lora, policy, trainer
from tests.trainer.test_roles import adapted, close, logprobs, own_logprobs

FAST = {"learning_rate": 1e-2, "save_strategy": "no", "total_episodes": 16}


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    new = dict(after.named_parameters())
    return {name for name, p in before.named_parameters() if not torch.equal(p, new[name].to(p.dtype))}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_all_models_are_their_own_after_training(tmp_path, architecture):
    given = {
        "model": policy(architecture), "ref_model": policy(architecture), "reward_model": classifier(architecture),
        "value_model": classifier(architecture, seed=5),
    }  # fmt: skip
    before = copy.deepcopy(given)
    made = trainer(tmp_path, **given, peft_config=None, options=FAST)
    made.train()
    for name, model in given.items():
        assert model.config._attn_implementation == "eager"
        assert [n for n, _ in model.named_modules()] == [n for n, _ in before[name].named_modules()]
        assert all(p.requires_grad for p in model.parameters())
        assert bool(changed(before[name], model)) == (name in ("model", "value_model"))
    close(own_logprobs(given["model"]), logprobs(made.ppo.policy))
    batch = torch.tensor([[0, 0, 5, 9], [7, 8, 5, 9]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    three = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    alone = given["model"].generate(torch.tensor([[5, 9]]), **three)
    padded = given["model"].generate(batch[0], attention_mask=batch[1], **three)
    assert padded[0, 4:].tolist() == alone[0, 2:].tolist()
    given["model"].save_pretrained(tmp_path / "own")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "own", dtype=torch.float32)
    close(own_logprobs(again), own_logprobs(given["model"]))
    given["model"](batch[0]).logits.sum().backward()
    assert all(p.grad is not None for p in given["model"].parameters())


class Generates(TrainerCallback):
    def __init__(self, model) -> None:
        self.model, self.texts = model, []

    def on_step_end(self, args, state, control, model, **_):
        for one in (self.model, model.policy):
            self.texts.append(one.generate(torch.tensor([[5, 9]]), max_new_tokens=2, do_sample=False).tolist())


@pytest.mark.parametrize("peft_config", [lora(), None])
def test_models_generate_in_callbacks(tmp_path, peft_config):
    model = policy()
    callback = Generates(model)
    trainer(tmp_path, model=model, peft_config=peft_config, options=FAST, callbacks=[callback]).train()
    assert len(callback.texts) == 4 and callback.texts[-2] == callback.texts[-1]


@pytest.mark.parametrize("names", [{}, {"model_adapter_name": "other", "ref_adapter_name": "default"}])
def test_a_peft_model_holds_what_was_trained_and_saves_and_merges_it(tmp_path, names):
    model = adapted()
    before = copy.deepcopy(model)
    made = trainer(tmp_path, model=model, peft_config=None, options=FAST | names)
    made.train()
    trained = names.get("model_adapter_name", "default")
    assert changed(before, model) and all(f".{trained}." in name for name in changed(before, model))
    close(own_logprobs(model), logprobs(made.ppo.policy))
    model.save_pretrained(str(tmp_path / "own"))
    expected = logprobs(made.ppo.policy)
    saved = tmp_path / "own" if trained == "default" else tmp_path / "own" / trained
    close(own_logprobs(PeftModel.from_pretrained(policy(), str(saved))), expected)
    close(own_logprobs(model.merge_and_unload()), expected)


@pytest.mark.parametrize("name", ["policy_model", "given"])
def test_a_fresh_adapter_is_in_the_policy_model_and_in_the_model_given(tmp_path, name):
    model = policy()
    made = trainer(tmp_path, model=model, options=FAST)
    made.train()
    assert isinstance(made.policy_model, PeftModel)
    close(own_logprobs(made.policy_model if name == "policy_model" else model), logprobs(made.ppo.policy))
    made.policy_model.save_pretrained(str(tmp_path / "own"))
    again = PeftModel.from_pretrained(policy(), str(tmp_path / "own"))
    close(own_logprobs(again), logprobs(made.ppo.policy))
    assert (own_logprobs(again) - own_logprobs(policy())).abs().max() > 1e-3


def test_two_trainers_one_after_the_other_train_the_same_objects(tmp_path):
    for name, model, peft_config in (
        ("peft", get_peft_model(policy(), lora()), None), ("whole", policy(), None), ("fresh", policy(), lora()),
    ):  # fmt: skip
        reward, value = classifier(), classifier(seed=5)
        given = {"model": model, "reward_model": reward, "value_model": value, "peft_config": peft_config}
        for turn in range(2):
            before, value_before = own_logprobs(model), copy.deepcopy(value)
            made = trainer(tmp_path / f"{name}{turn}", **given, options=FAST)
            if peft_config is None:
                close(logprobs(made.ppo.policy), before)
            made.train()
            close(own_logprobs(model), logprobs(made.ppo.policy))
            assert (own_logprobs(model) - before).abs().max() > 1e-3 and changed(value_before, value)


def test_a_model_with_adapter_layers_that_nobody_trains_is_refused(tmp_path):
    model = policy()
    get_peft_model(model, lora())
    with pytest.raises(UsageError, match="LoRA layers and is no PeftModel"):
        trainer(tmp_path, model=model, peft_config=None)


def test_frozen_parameters_of_policy_and_value_model_stay(tmp_path):
    model, value = policy(), classifier(seed=5)
    for name, parameter in [*model.named_parameters(), *value.named_parameters()]:
        parameter.requires_grad_("layers.1." in name or name == "score.weight")
    before = copy.deepcopy((model, value))
    trainer(tmp_path, model=model, value_model=value, peft_config=None, options=FAST).train()
    layer = {name for name, _ in model.named_parameters() if "layers.1." in name}
    assert changed(before[0], model) == layer
    assert changed(before[1], value) == layer | {"score.weight"}


def test_a_wholly_frozen_policy_or_critic_is_said(tmp_path, caplog):
    model = policy().requires_grad_(False)
    before = copy.deepcopy(model)
    trainer(tmp_path, model=model, peft_config=None, options=FAST).train()
    assert not changed(before, model) and "only the critic is trained" in caplog.text
    with pytest.raises(UsageError, match="no parameter of value_model requires a gradient"):
        trainer(tmp_path, value_model=classifier().requires_grad_(False))
    get_peft_model(policy(), lora()).save_pretrained(str(tmp_path / "frozen"))
    with pytest.raises(UsageError, match="is_trainable=True"):
        trainer(tmp_path, model=PeftModel.from_pretrained(policy(), str(tmp_path / "frozen")), peft_config=None)
    partly = get_peft_model(policy(), lora())
    partly.get_base_model().model.norm.weight.requires_grad_(True)
    with pytest.raises(UsageError, match=r"1 parameters of the PeftModel's base require a gradient \(model.norm"):
        trainer(tmp_path, model=partly, peft_config=None)


def mlp_score():
    return nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 1))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 1)

    def forward(self, states):
        return 3 * self.inner(states).clamp(-5, 5)


class Forwards(nn.Module):
    """A wrapper with the attributes of what it wraps."""

    def __init__(self, inner) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inner, name)


def with_score(score: nn.Module):
    model = classifier(seed=5)
    model.score = score
    return model


def peft_classifier():
    model = get_peft_model(classifier(seed=5), lora(task_type="SEQ_CLS"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


SCORERS = {
    "mlp": lambda: with_score(mlp_score()), "scaled": lambda: with_score(Scaled()), "peft": peft_classifier,
    "wrapper": lambda: Forwards(classifier(seed=5)), "float16": lambda: classifier(seed=5).half(),
}  # fmt: skip


def by_hand(model, sequences) -> torch.Tensor:
    """score of the last hidden state at the last token, by the model's own forward."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.no_grad():
        states = [inner.model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1:] for ids in sequences]
        return torch.stack([inner.score(state)[0, 0, 0] for state in states])


@pytest.mark.parametrize("kind", SCORERS)
def test_every_kind_of_scorer_is_a_reward(tmp_path, kind):
    model, sequences = SCORERS[kind](), tokens(4, 9, 6, 9)
    made = trainer(tmp_path, reward_model=model, options=FAST)
    expected = by_hand(model, sequences)
    assert expected.dtype == torch.float32 and expected.std() > 1e-3
    scores = made.ppo.reward.score(RewardBatch([""] * 4, [""] * 4, sequences)).total
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-3)
    before = copy.deepcopy(model)
    made.train()
    assert not changed(before, model)


@pytest.mark.parametrize("kind", SCORERS)
def test_every_kind_of_scorer_is_a_critic(tmp_path, kind):
    model = SCORERS[kind]()
    before = copy.deepcopy(model)
    trainer(tmp_path, value_model=model, options=FAST).train()
    names = changed(before, model)
    assert any("score" in name for name in names)
    if kind == "peft":
        assert any("lora_" in n for n in names) and all("lora_" in n or "modules_to_save" in n for n in names)
    else:
        assert any("up_proj" in name for name in names)


class Lengths(nn.Module):
    """A rule in the shape of a reward model: the hidden states are the token ids."""

    base_model_prefix = "echo"

    def __init__(self, tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def echo(self, input_ids, **_):
        return SimpleNamespace(hidden_states=(input_ids[..., None].float(),))

    def score(self, states):
        texts = self.tokenizer.batch_decode(states[..., 0].long(), skip_special_tokens=True)
        scores = torch.tensor([float(len(text.split())) for text in texts])
        return scores[:, None, None].expand(-1, states.shape[1], 1)


def test_a_rule_in_the_shape_of_a_reward_model_reads_whole_sequences(tmp_path):
    made = trainer(tmp_path, options=FAST)
    made = trainer(tmp_path, reward_model=Lengths(made.processing_class), options=FAST)
    scores = made.ppo.reward.score(RewardBatch([""] * 3, [""] * 3, [[5, 6, 7], [8], [9, 10, 11]])).total
    assert scores.tolist() == [3.0, 1.0, 3.0]
    made.train()


class Means(nn.Module):
    def forward(self, states):
        return states.mean((1, 2), keepdim=True).expand(-1, states.shape[1], 1)


def test_a_score_that_mixes_tokens_or_gives_two_numbers_is_refused(tmp_path):
    with pytest.raises(UsageError, match="reward_model: its `score` mixes the states"):
        trainer(tmp_path, reward_model=with_score(Means()))
    with pytest.raises(UsageError, match="value_model: its `score` has 2 outputs"):
        trainer(tmp_path, value_model=with_score(nn.Linear(32, 2)))


@pytest.mark.parametrize("role", ["model", "ref_model"])
def test_float16_runs_as_float32_and_is_said(tmp_path, caplog, role):
    given = {"model": policy().half(), "ref_model": policy().half()}
    given = given if role == "ref_model" else {"model": given["model"]}
    trainer(tmp_path, **given, options=FAST).train()
    assert given["model"].dtype == torch.float32 and "model was loaded as float16" in caplog.text


def test_bf16_false_keeps_the_dtype_as_loaded(tmp_path):
    for dtype in (torch.bfloat16, torch.float32):
        made = trainer(tmp_path, model=policy().to(dtype), options=FAST | {"bf16": False})
        assert made.ppo.policy.model.dtype == dtype
        frequencies = made.ppo.policy.model.base.model.rotary_emb.inv_freq
        assert frequencies.dtype == policy().to(dtype).model.rotary_emb.inv_freq.dtype
