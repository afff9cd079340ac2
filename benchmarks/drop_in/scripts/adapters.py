"""In the forms of users who train adapters: `adapters.py FORM OUTPUT_DIR [JSON of LoraConfig's arguments]`."""

import json
import sys

import peft
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.drop_in import checks

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
tokenizer = AutoTokenizer.from_pretrained("policy", padding_side="left")


def language_model():
    return AutoModelForCausalLM.from_pretrained("policy", dtype=torch.float32)


def classifier():
    return AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1, dtype=torch.float32)


def train(output_dir, options=None, **given):
    """The trainer after its run."""
    rows = load_dataset("rows").map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]})
    rows = rows.remove_columns("prompt")
    args = PPOConfig(**({
        "output_dir": output_dir, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
        "total_episodes": 8, "response_length": 6, "num_ppo_epochs": 1, "learning_rate": 1e-2, "report_to": "none",
        "num_sample_generations": 0, "bf16": False, "use_cpu": True,
    } | (options or {})))  # fmt: skip
    models = {"ref_model": None, "reward_model": classifier(), "value_model": classifier()} | given
    trainer = PPOTrainer(
        args=args, processing_class=tokenizer, train_dataset=rows["train"], eval_dataset=rows["test"], **models
    )
    trainer.train()
    return trainer


def trained_lora(model):
    """Assert that every lora_B of the active adapter left zero."""
    factors = [p for name, p in model.named_parameters() if "lora_B.default" in name]
    assert factors and all(p.abs().sum() > 0 for p in factors)


def peft_config(output_dir, **options):
    """A `peft_config`; `save_model`, and the folder opened on the base."""
    trainer = train(output_dir, model=language_model(), peft_config=LoraConfig(**(LORA | options)))
    trained_lora(trainer.model.policy)
    trainer.save_model(output_dir)
    opened = PeftModel.from_pretrained(language_model(), output_dir)
    ids = torch.tensor([tokenizer(checks.PROMPT)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(opened(ids).logits, trainer.model.policy(ids).logits, atol=1e-4, rtol=1e-3)
    checks.opens(output_dir, "policy")


def peft_model(output_dir, **options):
    """A `PeftModel`, saved by its own `save_pretrained`."""
    model = get_peft_model(language_model(), LoraConfig(**(LORA | options)))
    train(output_dir, model=model)
    trained_lora(model)
    model.save_pretrained(output_dir)
    checks.opens(output_dir, "policy")


def merged(output_dir, **options):
    """Merged after training, saved whole; it gives the logits of the adapter."""
    trainer = train(output_dir, model=language_model(), peft_config=LoraConfig(**(LORA | options)))
    policy = trainer.accelerator.unwrap_model(trainer.model).policy.eval()
    ids = torch.tensor([tokenizer(checks.PROMPT)["input_ids"]])
    with torch.no_grad():
        before = policy(ids).logits
        whole = policy.merge_and_unload()
        torch.testing.assert_close(whole(ids).logits, before, atol=1e-4, rtol=1e-3)
    whole.save_pretrained(f"{output_dir}/merged")
    tokenizer.save_pretrained(f"{output_dir}/merged")
    checks.opens(f"{output_dir}/merged", "policy")


def loaded_adapter(output_dir):
    """An adapter from a file goes on being trained."""
    model = PeftModel.from_pretrained(language_model(), "adapter", is_trainable=True)
    before = checks.weights(model)
    train(output_dir, model=model)
    names = checks.changed(before, model)
    assert names and all("lora_" in name for name in names), names


def two_adapters(output_dir):
    """One is trained, the other is the reference and stays as it is."""
    model = get_peft_model(language_model(), LoraConfig(**LORA), adapter_name="trained")
    model.add_adapter("fixed", LoraConfig(**LORA))
    before = checks.weights(model)
    options = {"model_adapter_name": "trained", "ref_adapter_name": "fixed"}
    train(output_dir, options, model=model)
    names = checks.changed(before, model)
    assert names and all(".trained." in name for name in names), names


def two_runs(output_dir):
    """A second trainer on the objects of the first."""
    model, critic = get_peft_model(language_model(), LoraConfig(**LORA)), classifier()
    for _ in range(2):
        before = checks.weights(model)
        train(output_dir, {"save_strategy": "no"}, model=model, value_model=critic)
        assert checks.changed(before, model)


def adapted_reward(output_dir):
    """The reward is an adapter on a classifier, as TRL's RewardTrainer leaves it; it is not trained."""
    reward = get_peft_model(classifier(), LoraConfig(**(LORA | {"task_type": "SEQ_CLS"})))
    before = checks.weights(reward)
    train(output_dir, model=get_peft_model(language_model(), LoraConfig(**LORA)), reward_model=reward)
    assert not checks.changed(before, reward)


def adapted_value(output_dir):
    """The value model is an adapter on a classifier: adapter and score are trained, nothing else."""
    value = get_peft_model(classifier(), LoraConfig(**(LORA | {"task_type": "SEQ_CLS"})))
    before = checks.weights(value)
    train(output_dir, model=get_peft_model(language_model(), LoraConfig(**LORA)), value_model=value)
    names = checks.changed(before, value)
    assert names and all("lora_" in name or "modules_to_save" in name for name in names), names


def reference_beside(output_dir):
    """A `ref_model` beside a `PeftModel`; it is not trained."""
    reference = language_model()
    before = checks.weights(reference)
    model = get_peft_model(language_model(), LoraConfig(**LORA))
    train(output_dir, model=model, ref_model=reference)
    trained_lora(model)
    assert not checks.changed(before, reference)


def other_method(output_dir, method, **options):
    """Another of PEFT's methods than LoRA."""
    config = getattr(peft, method)(task_type="CAUSAL_LM", **options)
    trainer = train(output_dir, model=language_model(), peft_config=config)
    trainer.save_model(output_dir)
    says = PeftModel.from_pretrained(language_model(), output_dir)
    checks.says(says, tokenizer)


FORMS = (
    peft_config, peft_model, merged, loaded_adapter, two_adapters, two_runs, adapted_reward, adapted_value,
    reference_beside, other_method,
)  # fmt: skip

if __name__ == "__main__":
    form = next(form for form in FORMS if form.__name__ == sys.argv[1])
    form(sys.argv[2], **json.loads(sys.argv[3] if len(sys.argv) > 3 else "{}"))
