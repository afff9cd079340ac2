"""In the forms of users who go beyond the examples: `users.py FORM OUTPUT_DIR`."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset, load_dataset
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from benchmarks.drop_in import checks

tokenizer = AutoTokenizer.from_pretrained("policy", padding_side="left")


def language_model(name="policy", dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(name, dtype=dtype)


def classifier(dtype=torch.float32):
    return AutoModelForSequenceClassification.from_pretrained("reward", num_labels=1, dtype=dtype)


def dataset(split="train"):
    rows = load_dataset("rows", split=split)
    return rows.map(lambda row: {"input_ids": tokenizer(row["prompt"])["input_ids"]}, remove_columns="prompt")


def config(output_dir, **options):
    return PPOConfig(**({
        "output_dir": output_dir, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
        "total_episodes": 8, "response_length": 6, "num_ppo_epochs": 1, "learning_rate": 1e-3, "report_to": "none",
        "num_sample_generations": 0, "bf16": False, "use_cpu": True, "logging_steps": 1,
    } | options))  # fmt: skip


def build(args, trainer_class=PPOTrainer, **given):
    if isinstance(args, str):
        args = config(args)
    defaults: dict[str, Any] = {
        "model": language_model, "ref_model": language_model, "reward_model": classifier, "value_model": classifier,
        "train_dataset": dataset,
    }  # fmt: skip
    given = {name: make() for name, make in defaults.items() if name not in given} | given
    given.setdefault("eval_dataset", dataset("test"))
    return trainer_class(args=args, processing_class=tokenizer, **given)


def callbacks(output_dir):
    """Every event of TRL's loop comes, in order, with the state and the logs that it documents."""
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append("begin")
            assert state.max_steps == 2 and kwargs["optimizer"] is not None and kwargs["lr_scheduler"] is not None

        def on_step_end(self, args, state, control, **kwargs):
            seen.append(f"step {state.global_step}")
            assert state.log_history[-1]["step"] == state.global_step

        def on_log(self, args, state, control, logs=None, **kwargs):
            assert logs["episode"] == 4 * state.global_step and "objective/scores" in logs
            seen.append("log")

        def on_save(self, args, state, control, **kwargs):
            seen.append("save")

        def on_train_end(self, args, state, control, **kwargs):
            seen.append("end")

    build(config(output_dir, save_steps=2), callbacks=[Watch]).train()
    assert seen == ["begin", "log", "step 1", "log", "step 2", "save", "end"], seen


def callback_generates(output_dir):
    """A callback generates with the model that it is handed, in the middle of training."""
    said = []

    class Speak(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, processing_class=None, **kwargs):
            said.append(checks.says(model.policy, processing_class))

    build(output_dir, callbacks=[Speak()]).train()
    assert len(said) == 2


def callback_added(output_dir):
    """`add_callback` after construction; a callback sets a coefficient for the rest of the run."""

    class Anneal(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            args.vf_coef, args.cliprange = 0.05, 0.1

    trainer = build(output_dir)
    trainer.add_callback(Anneal())
    trainer.train()
    assert trainer.args.vf_coef == 0.05
    trainer.remove_callback(Anneal)


def subclass_saves(output_dir):
    """Overridden `save_model`, `_save_checkpoint` and `log` are called."""
    called = []

    class Own(PPOTrainer):
        def save_model(self, output_dir=None, _internal_call=False):
            called.append("save_model")
            super().save_model(output_dir, _internal_call)

        def _save_checkpoint(self, model, trial):
            called.append("_save_checkpoint")
            super()._save_checkpoint(model, trial)

        def log(self, logs, start_time=None):
            called.append("log")
            super().log(logs | {"own": 1.0}, start_time)

    trainer = build(config(output_dir, save_steps=1), Own)
    trainer.train()
    assert {"save_model", "_save_checkpoint", "log"} <= set(called), called
    assert trainer.state.log_history[-1]["own"] == 1.0


def subclass_optimizer(output_dir):
    """Overridden `create_optimizer`: SGD, whose step is the learning rate times the gradient."""

    class Own(PPOTrainer):
        def create_optimizer(self, *args, **kwargs):
            self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
            return self.optimizer

    model = language_model()
    before = checks.weights(model)
    trainer = build(output_dir, Own, model=model)
    trainer.train()
    used = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
    assert type(used) is torch.optim.SGD and checks.changed(before, model)


def optimizers_given(output_dir):
    model, value = language_model(), classifier()
    before = checks.weights(value)
    optimizer = torch.optim.AdamW([*model.parameters(), *value.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    build(output_dir, model=model, value_model=value, optimizers=(optimizer, schedule)).train()
    assert schedule.get_last_lr() == [1e-3 / 3] and checks.changed(before, value)


class Rule(nn.Module):
    """The usual way to bring a rule to TRL's PPO: token ids as hidden states, a `score` that decodes them."""

    base_model_prefix = "backbone"

    def __init__(self):
        super().__init__()
        self.backbone, self.unused = Ids(), nn.Parameter(torch.zeros(1))

    def score(self, states):
        texts = tokenizer.batch_decode(states[..., 0].long(), skip_special_tokens=True)
        scores = torch.tensor([float(text.count("e")) for text in texts])
        return scores[:, None, None].expand(-1, states.shape[1], 1)


class Ids(nn.Module):
    def forward(self, input_ids=None, **others):
        return SimpleNamespace(hidden_states=(input_ids.float().unsqueeze(-1),))


def reward_rule(output_dir):
    trainer = build(output_dir, reward_model=Rule())
    trainer.train()
    assert trainer.state.log_history[-1]["objective/scores"] > 0


def reward_clipped(output_dir):
    """A classifier whose `score` is wrapped, so that rewards stay within 0.1."""

    class Clipped(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, states):
            return self.layer(states).clamp(-0.1, 0.1)

    reward = classifier()
    reward.score = Clipped(reward.score)
    trainer = build(output_dir, reward_model=reward)
    trainer.train()
    assert all(abs(row["objective/scores"]) <= 0.1 + 1e-6 for row in trainer.state.log_history)


def reward_mlp(output_dir):
    reward = classifier()
    reward.score = nn.Sequential(nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 1))
    before = checks.weights(reward)
    build(output_dir, reward_model=reward).train()
    assert not checks.changed(before, reward)


def value_frozen(output_dir):
    """A critic whose backbone does not train."""
    value = classifier()
    for name, parameter in value.named_parameters():
        parameter.requires_grad_(name.startswith("score"))
    before = checks.weights(value)
    build(output_dir, value_model=value).train()
    assert checks.changed(before, value) == {"score.weight"}


def policy_frozen(output_dir):
    """A policy of which only the last layer trains."""
    model = language_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1." in name)
    before = checks.weights(model)
    build(output_dir, model=model).train()
    names = checks.changed(before, model)
    assert names and all("layers.1." in name for name in names), names


def reference_left_out(output_dir):
    """`ref_model=None` while all weights train: the reference stays what the policy was."""
    trainer = build(output_dir, ref_model=None)
    trainer.train()
    assert trainer.state.log_history[0]["objective/kl"] < 1e-3 < abs(trainer.state.log_history[-1]["objective/kl"])


def loaded_in(output_dir, dtype):
    model = language_model(dtype=getattr(torch, dtype))
    before = checks.weights(model)
    reference, reward = language_model(dtype=getattr(torch, dtype)), classifier(getattr(torch, dtype))
    trainer = build(output_dir, model=model, ref_model=reference, reward_model=reward)
    trainer.train()
    assert checks.changed(before, model)
    checks.logged(trainer)


def loaded_in_bfloat16(output_dir):
    loaded_in(output_dir, "bfloat16")


def loaded_in_float16(output_dir):
    loaded_in(output_dir, "float16")


def rows_padded(output_dir):
    """Prompts padded to one length by the tokenizer, without an attention mask."""
    texts = load_dataset("rows", split="train")["prompt"]
    padded = [{"input_ids": tokenizer(t, padding="max_length", max_length=40)["input_ids"]} for t in texts]
    trainer = build(output_dir, train_dataset=Dataset.from_list(padded))
    trainer.train()
    checks.logged(trainer)


def rows_in_a_list(output_dir):
    """A list of rows with attention masks, and a collator of the script's own."""

    class Collator(DataCollatorWithPadding):
        def __call__(self, features):
            return super().__call__([{"input_ids": f["input_ids"][-3:]} for f in features])

    rows = [dict(tokenizer(text)) for text in load_dataset("rows", split="train")["prompt"]]
    collator = Collator(tokenizer)
    trainer = build(output_dir, train_dataset=rows, data_collator=collator)
    assert next(iter(trainer.dataloader))["input_ids"].shape == (4, 3)
    trainer.train()
    checks.logged(trainer)


def fields_set_later(output_dir):
    """Fields set on `args` after it was made, before the trainer is."""
    args = config(output_dir)
    args.total_episodes, args.gradient_accumulation_steps, args.learning_rate = 16, 2, 2e-3
    trainer = build(args)
    assert (trainer.args.batch_size, trainer.args.num_total_batches) == (8, 2)
    trainer.train()
    assert trainer.state.global_step == 2


def config_written_and_read(output_dir):
    """The config as JSON, and a config made from what was written."""
    args = config(output_dir, lr_scheduler_type="cosine", warmup_steps=1)
    written = json.loads(args.to_json_string())
    assert (written["learning_rate"], written["lr_scheduler_type"]) == (1e-3, "cosine")
    assert "kl_coef" in args.to_sanitized_dict()
    again = config(output_dir, **{name: written[name] for name in ("kl_coef", "seed", "lr_scheduler_type")})
    build(again).train()


def completions(output_dir):
    """Completions of held-out prompts, during training and after it."""
    trainer = build(config(output_dir, num_sample_generations=2))
    trainer.train()
    trainer.generate_completions(sampling=True)
    trainer.generate_completions()


def saved_by_hand(output_dir):
    """Policy, value model and optimiser saved by the objects' own methods; what the trainer writes beside."""
    model, value = language_model(), classifier()
    trainer = build(output_dir, model=model, value_model=value)
    trainer.train()
    model.save_pretrained(f"{output_dir}/by-hand")
    tokenizer.save_pretrained(f"{output_dir}/by-hand")
    checks.opens(f"{output_dir}/by-hand", "policy")
    trainer.model.value_model.save_pretrained(f"{output_dir}/value")
    opened = AutoModelForSequenceClassification.from_pretrained(f"{output_dir}/value", dtype=torch.float32)
    assert not checks.changed(checks.weights(value), opened)
    assert trainer.model.policy.config.model_type == trainer.model.config.model_type == "qwen2"
    assert trainer.optimizer.state_dict()["state"] and trainer.lr_scheduler.get_last_lr()
    trainer.save_state()
    trainer.log_metrics("train", {"train_loss": 0.5})
    trainer.save_metrics("train", {"train_loss": 0.5})
    trainer.create_model_card(model_name="tiny")
    written = {path.name for path in Path(output_dir).iterdir()}
    assert {"trainer_state.json", "train_results.json", "README.md"} <= written, written


def goes_on_from_a_checkpoint(output_dir):
    """A second run starts from the policy that the first run's checkpoint holds."""
    build(config(f"{output_dir}/first", save_steps=1)).train()
    checks.opens(f"{output_dir}/first/checkpoint-1", "policy")
    trainer = build(f"{output_dir}/second", model=language_model(f"{output_dir}/first/checkpoint-2"))
    trainer.train()
    checks.logged(trainer)


def resumed(output_dir):
    """`train(resume_from_checkpoint=...)` after a run that broke off, as in transformers' other trainers."""

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise ConnectionError("broken off")

    options = {"save_steps": 1, "total_episodes": 16}
    broken = build(config(output_dir, **options), callbacks=[Break])
    try:
        broken.train()
    except ConnectionError as error:
        assert str(error) == "broken off"
    trainer = build(config(output_dir, **options))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4 and trainer.state.log_history[0]["step"] > 1


def two_trainers(output_dir):
    """A second trainer on the models of the first."""
    model, value, reward = language_model(), classifier(), classifier()
    for name in ("first", "second"):
        before = checks.weights(model)
        build(f"{output_dir}/{name}", model=model, value_model=value, reward_model=reward).train()
        assert checks.changed(before, model)


FORMS = (
    callbacks, callback_generates, callback_added, subclass_saves, subclass_optimizer, optimizers_given, reward_rule,
    reward_clipped, reward_mlp, value_frozen, policy_frozen, reference_left_out, loaded_in_bfloat16,
    loaded_in_float16, rows_padded, rows_in_a_list, fields_set_later, config_written_and_read, completions,
    saved_by_hand, goes_on_from_a_checkpoint, resumed, two_trainers,
)  # fmt: skip

if __name__ == "__main__":
    next(form for form in FORMS if form.__name__ == sys.argv[1])(sys.argv[2])
