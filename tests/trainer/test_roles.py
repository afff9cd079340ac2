"""Which model plays which role, from what a script hands over."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from peft import PeftModel, get_peft_model

from rlhf_fast import UsageError
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy
from rlhf_fast.trainer.classifier import Classifier
from tests.model_cases import tiny_model, tokens
from tests.trainer.cases import classifier, lora, policy, trainer

SEQUENCES = tokens(5, 9, 3)


def own_logprobs(model, sequences=SEQUENCES) -> torch.Tensor:
    """Log-probs of every token but the first, by the model's own forward in float64."""
    out = []
    for ids in sequences:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        out.append(logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])])
    return torch.cat(out)


def logprobs(role: Policy) -> torch.Tensor:
    with torch.no_grad():
        return role.logprobs(Packed.from_sequences(SEQUENCES, SEQUENCES)).logprobs.double()


def close(one, other):
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def adapted():
    """A PeftModel with two adapters that are not zero."""
    model = get_peft_model(policy(), lora(), adapter_name="default")
    model.add_adapter("other", lora(r=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def test_with_a_peft_config_policy_and_reference_share_the_base(tmp_path):
    expected = own_logprobs(policy())
    made = trainer(tmp_path)
    roles = made.ppo
    assert roles.policy.model is roles.reference.model is roles.critic.model
    close(logprobs(roles.policy), expected)
    close(logprobs(roles.reference), expected)
    assert roles.starts_as_reference


def test_without_one_all_weights_train_and_a_frozen_copy_is_the_reference(tmp_path):
    model = policy()
    expected = own_logprobs(model)
    made = trainer(tmp_path, model=model, peft_config=None)
    made.ppo.step()
    assert made.policy_model is model
    assert (logprobs(made.ppo.policy) - expected).abs().max() > 1e-4
    close(logprobs(made.ppo.reference), expected)


def test_a_peft_model_brings_its_adapter_and_the_bare_base_is_the_reference(tmp_path):
    model = adapted()
    with_adapter = own_logprobs(model)
    with model.disable_adapter():
        bare = own_logprobs(model)
    assert (with_adapter - bare).abs().max() > 1e-2
    made = trainer(tmp_path, model=model, peft_config=None).ppo
    close(logprobs(made.policy), with_adapter)
    close(logprobs(made.reference), bare)
    assert not made.starts_as_reference
    made.step()


def test_named_adapters_are_policy_and_reference(tmp_path):
    model = adapted()
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = own_logprobs(model)
    options = {"model_adapter_name": "other", "ref_adapter_name": "default"}
    made = trainer(tmp_path, model=model, peft_config=None, options=options).ppo
    close(logprobs(made.policy), expected["other"])
    close(logprobs(made.reference), expected["default"])


@pytest.mark.parametrize(("beginning", "zero"), [("gaussian", True), (False, False), ("orthogonal", False)])
def test_an_adapter_begins_as_the_config_says(tmp_path, beginning, zero):
    """PEFT's: `gaussian` has B = 0, so that the policy starts as its reference; the others have not."""
    made = trainer(tmp_path, peft_config=lora(init_lora_weights=beginning), options={"total_episodes": 8})
    config = made.policy_model.peft_config["default"]
    assert config.init_lora_weights == beginning and made.roles.critic is not None
    factors = {n: p.detach().clone() for n, p in made.policy_model.named_parameters() if "lora_" in n}
    assert all((p == 0).all() for n, p in factors.items() if "lora_B" in n) is zero
    made.train()
    assert (made.state.log_history[-1]["objective/kl"] == 0) is zero
    again = trainer(tmp_path / "again", model=made.policy_model, peft_config=None)  # now a PeftModel
    again.train()
    assert any((p != factors[n]).any() for n, p in again.policy_model.named_parameters() if n in factors)


def test_a_beginning_that_changes_the_base_is_refused(tmp_path):
    for beginning in ("pissa", "olora"):
        with pytest.raises(UsageError, match=f"init_lora_weights='{beginning}'"):
            trainer(tmp_path, peft_config=lora(init_lora_weights=beginning))


def test_a_ref_model_with_the_same_weights_is_left_aside_and_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        made = trainer(tmp_path, ref_model=policy()).ppo
    assert made.reference.model is made.policy.model and made.starts_as_reference
    assert "ref_model=None saves its 0.00 GB" in caplog.text


@pytest.mark.parametrize("peft_config", [lora(), None])
def test_another_ref_model_is_the_reference(tmp_path, peft_config):
    other = tiny_model(seed=1)
    expected = own_logprobs(other)
    made = trainer(tmp_path, ref_model=other, peft_config=peft_config).ppo
    close(logprobs(made.reference), expected)
    assert not made.starts_as_reference
    made.step()


def test_a_peft_model_is_the_reference_with_its_active_adapter(tmp_path):
    other = adapted()
    expected = own_logprobs(other)
    made = trainer(tmp_path, ref_model=other).ppo
    close(logprobs(made.reference), expected)
    assert not made.starts_as_reference
    made.step()


def test_a_value_model_is_trained_whole_with_its_own_head(tmp_path, caplog):
    value = classifier(seed=5)
    own = copy.deepcopy(value)
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        made = trainer(tmp_path, value_model=value).ppo
    assert isinstance(made.critic, Classifier) and "value_model=None trains an adapter" in caplog.text
    packed = Packed.from_sequences(SEQUENCES)
    with torch.no_grad():
        expected = torch.stack([own(torch.tensor([ids])).logits[0, 0] for ids in SEQUENCES])
        torch.testing.assert_close(made.critic.values(packed), expected, atol=1e-5, rtol=1e-4)
    made.step()
    assert (value.score.weight - own.score.weight).abs().max() > 1e-4
    assert (value.model.layers[0].mlp.up_proj.weight - own.model.layers[0].mlp.up_proj.weight).abs().max() > 1e-4


@pytest.mark.parametrize("critic", ["adapter", "policy_head", "reference_mlp"])
def test_without_a_value_model_the_config_names_the_critic(tmp_path, critic):
    for peft_config in (lora(), None):
        trainer(tmp_path, options={"critic": critic}, peft_config=peft_config).ppo.step()


def test_lora_dropout_is_switched_off_as_in_trl(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        trainer(tmp_path, peft_config=lora(lora_dropout=0.05))
    assert "lora_dropout=0.05 is set to 0" in caplog.text


def test_bf16_computes_a_frozen_base_in_bfloat16_and_trained_weights_stay_float32(tmp_path, caplog):
    assert trainer(tmp_path, options={"bf16": True}).policy_model.dtype == torch.bfloat16
    assert trainer(tmp_path).policy_model.dtype == torch.float32
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        made = trainer(tmp_path, options={"bf16": True}, peft_config=None)
    assert made.policy_model.dtype == torch.float32 and "in float32" in caplog.text


def _both(tmp_path):
    value = classifier()
    trainer(tmp_path, value_model=value, reward_model=value)


def _same_reference(tmp_path):
    model = policy()
    trainer(tmp_path, model=model, ref_model=model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_both, "value_model and reward_model are one object"),
        (_same_reference, "model and ref_model are one object"),
        (lambda path: trainer(path, model=adapted()), "PeftModel and peft_config is given too"),
        (lambda path: trainer(path, peft_config={"r": 8}), "expected a peft.LoraConfig"),
        (lambda path: trainer(path, options={"ref_adapter_name": "x"}), "ref_adapter_name='x'"),
        (lambda path: trainer(path, model=adapted(), peft_config=None, options={"model_adapter_name": "x"}),
         "it has default, other"),
        (lambda path: trainer(path, model=policy().double()), "loaded as torch.float64"),
        (lambda path: trainer(path, value_model=policy()), "no layer `score`"),
        (lambda path: trainer(path, model=torch.nn.Linear(2, 2)), "expected a model of transformers"),
    ],
)  # fmt: skip
def test_models_that_cannot_be_used_are_refused(tmp_path, make, message):
    with pytest.raises(UsageError, match=message):
        make(tmp_path)


def test_the_adapter_of_a_peft_model_is_saved_as_peft_reads_it(tmp_path):
    made = trainer(tmp_path, model=adapted(), peft_config=None)
    made.ppo.step()
    made.save_model(str(tmp_path / "saved"))
    again = PeftModel.from_pretrained(policy(), str(tmp_path / "saved"))
    close(own_logprobs(again), logprobs(made.ppo.policy))
