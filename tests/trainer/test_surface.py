"""What a script finds on the trainer: hooks that a subclass overrides, attributes, fields set late, and old names."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import rlhf_fast
from rlhf_fast import PPOTrainer, UsageError
from rlhf_fast.runtime.tracking import read_metrics
from tests.model_cases import tokens
from tests.tiny_tokenizer import tiny_tokenizer
from tests.trainer.cases import LENGTHS, classifier, config, likes_even, lora, policy, rows, trainer


def of(cls, tmp_path, *, options=None, **given):
    """A trainer of a subclass."""
    defaults = {
        "processing_class": tiny_tokenizer(), "model": policy(), "ref_model": None, "reward_model": likes_even,
        "train_dataset": rows(), "peft_config": lora(),
    }  # fmt: skip
    return cls(config(tmp_path, **(options or {})), **(defaults | given))


class Hooks(PPOTrainer):
    """Notes the hooks that are called, and does what they do."""

    def __init__(self, *args, **kwargs):
        self.called = []
        super().__init__(*args, **kwargs)

    def save_model(self, output_dir=None, _internal_call=False):
        self.called.append(("save_model", _internal_call))
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir=None, state_dict=None):
        self.called.append("_save")
        super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        step = self.state.global_step
        folder = f"{self.args.output_dir}/checkpoint-{step}"
        self.called.append(("_save_checkpoint", step, len(load_file(f"{folder}/adapter_model.safetensors"))))

    def create_optimizer(self):
        self.called.append("create_optimizer")
        return super().create_optimizer()

    def create_scheduler(self, num_training_steps, optimizer=None):
        self.called.append(("create_scheduler", num_training_steps))
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs, start_time=None):
        self.called.append("log")
        super().log(logs, start_time)


def test_overridden_hooks_are_called(tmp_path):
    made = of(Hooks, tmp_path, options={"save_steps": 2, "total_episodes": 32, "logging_steps": 2})
    assert made.called == ["create_optimizer", ("create_scheduler", 4)]
    made.called.clear()
    made.train()
    save = [("save_model", True), "_save"]
    tensors = 2 * 2 * 7  # A and B in each of two layers, on seven linear layers
    assert made.called == [
        "log", *save, ("_save_checkpoint", 2, tensors), "log", *save, ("_save_checkpoint", 4, tensors), *save
    ]  # fmt: skip


class NoCheckpoints(PPOTrainer):
    def _save_checkpoint(self, model, trial):
        pass


def test_an_override_can_leave_checkpoints_out(tmp_path):
    of(NoCheckpoints, tmp_path, options={"save_steps": 1}).train()
    assert not list(tmp_path.glob("checkpoint-*")) and len(read_metrics(tmp_path)) == 3


class Sgd(PPOTrainer):
    def create_optimizer(self):
        self.optimizer = torch.optim.SGD((p for p in self.model.parameters() if p.requires_grad), lr=0.5)
        return self.optimizer


@pytest.mark.parametrize("given", [{}, {"peft_config": None}, {"value_model": classifier(seed=5)}])
def test_an_optimizer_made_in_a_subclass_takes_the_steps_by_the_configs_schedule(tmp_path, given):
    made = of(Sgd, tmp_path, options={"num_ppo_epochs": 2, "total_episodes": 16, "save_strategy": "no"}, **given)
    assert type(made.ppo.optimiser.adamw) is torch.optim.SGD
    rates = []
    step = made.optimizer.step
    made.optimizer.step = lambda *args: rates.append(made.optimizer.param_groups[0]["lr"]) or step(*args)
    made.train()
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0.25])


@pytest.mark.parametrize("kind", ["LambdaLR", "StepLR"])
def test_a_schedule_of_the_scripts_own_takes_a_step_an_iteration(tmp_path, kind):
    model, value = policy(), classifier(seed=5)
    sgd = torch.optim.SGD([*model.parameters(), *value.parameters()], lr=1.0)
    schedule = {
        "LambdaLR": lambda: torch.optim.lr_scheduler.LambdaLR(sgd, lambda n: 0.1**n),
        "StepLR": lambda: torch.optim.lr_scheduler.StepLR(sgd, 1, 0.1),
    }[kind]()
    given = {"model": model, "value_model": value, "peft_config": None, "optimizers": (sgd, schedule)}
    trainer(tmp_path, **given, options={"save_strategy": "no"}).train()
    assert [row["lr"] for row in read_metrics(tmp_path)] == pytest.approx([0.1, 0.01, 0.001])


def subclass(name):
    return type("Mine", (PPOTrainer,), {name: lambda self, *args, **kwargs: None})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compute_loss", "Mine overrides compute_loss, which PPO never calls.*fields of PPOConfig"),
        ("get_train_dataloader", "overrides get_train_dataloader.*train_dataset"),
        ("_inner_training_loop", "overrides _inner_training_loop"),
        ("prediction_step", "overrides prediction_step"),
        ("take_step", "Mine defines take_step, a name that PPOTrainer uses itself"),
    ],
)
def test_an_override_that_nothing_calls_is_refused(tmp_path, name, message):
    with pytest.raises(UsageError, match=message):
        of(subclass(name), tmp_path)


def test_methods_of_a_subclass_under_names_of_its_own_are_no_overrides(tmp_path):
    of(subclass("my_report"), tmp_path)


def test_attributes_are_those_of_trls_trainer(tmp_path):
    model, value, reward, data, held_out = policy(), classifier(seed=5), classifier(), rows(), rows(3, 4)
    made = trainer(
        tmp_path, model=model, value_model=value, reward_model=reward, train_dataset=data, eval_dataset=held_out,
        peft_config=None,
    )  # fmt: skip
    assert made.policy_model is made.model.policy is model and made.model.value_model is made.value_model is value
    assert (made.reward_model, made.train_dataset, made.eval_dataset) == (reward, data, held_out)
    assert made.accelerator.unwrap_model(made.model).policy is model
    assert {id(p) for p in made.model.parameters()} == {id(p) for m in (model, value) for p in m.parameters()}
    assert made.optimizer is made.ppo.optimiser.adamw and made.lr_scheduler.get_last_lr()[0] == 1e-3
    assert made.is_world_process_zero() and made.is_local_process_zero() and not made.is_peft_model
    assert made.get_num_trainable_parameters() == sum(p.numel() for m in (model, value) for p in m.parameters())
    batch = next(iter(made.dataloader))
    assert batch["input_ids"].shape == (8, max(LENGTHS)) and batch["attention_mask"].sum() == sum(LENGTHS)
    assert len(next(iter(made.eval_dataloader))["input_ids"]) == 2
    assert made.train_dataset_len == 8 and made.model.config is model.config
    with torch.no_grad():
        ids = torch.tensor(tokens(5))
        assert torch.equal(made.model(ids).logits, model(ids).logits)


@pytest.mark.parametrize(
    ("name", "message"),
    [("predict", "generate_completions\\(\\) returns them"), ("compute_loss", "fields of PPOConfig"),
     ("hyperparameter_search", "docs/migration.md"), ("no_such_thing", "object has no attribute 'no_such_thing'")],
)  # fmt: skip
def test_what_only_transformers_trainer_has_is_answered_with_what_serves(tmp_path, name, message):
    made = trainer(tmp_path)
    with pytest.raises(AttributeError, match=message):
        getattr(made, name)


def test_state_metrics_and_card_are_written_and_logs_take_a_start(tmp_path):
    made = trainer(tmp_path, options={"save_strategy": "no", "total_episodes": 8})
    made.train()
    made.save_state()
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 1
    made.save_metrics("train", {"a": 1.0})
    assert json.loads((tmp_path / "train_results.json").read_text()) == {"a": 1.0}
    made.log({"b": 2.0}, start_time=time.time() - 4)
    last = made.state.log_history[-1]
    assert last["b"] == 2.0 and 4 <= last["train_runtime"] < 60
    assert last["train_samples_per_second"] == pytest.approx(8 / last["train_runtime"], rel=0.05)
    made.create_model_card(model_name="mine", tags="x")
    assert "# mine" in (tmp_path / "README.md").read_text()


def test_fields_set_before_the_trainer_is_made_count(tmp_path):
    args = config(tmp_path, preset="trl", save_strategy="no")
    args.gradient_accumulation_steps, args.per_device_train_batch_size, args.num_mini_batches = 2, 2, 2
    args.preset, args.stop_token, args.learning_rate = "rlhf_fast", "eos", 5e-4
    made = PPOTrainer(args, tiny_tokenizer(), policy(), None, likes_even, rows(), peft_config=lora())
    assert (args.batch_size, args.mini_batch_size, args.local_batch_size, args.score_at) == (4, 2, 4, "eos")
    assert made.ppo.iterations == 6 and made.ppo.sampling.stop_ids == (2,)
    assert made.lr_scheduler.get_last_lr()[0] == 5e-4
    made.ppo.step()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("optim", "sgd", "optim='sgd' is not used"), ("temperature", -1.0, "temperature=-1.0"), ("fp16", True, "fp16")],
)
def test_a_field_set_before_the_trainer_is_made_is_checked(tmp_path, name, value, message):
    args = config(tmp_path)
    setattr(args, name, value)
    with pytest.raises(UsageError, match=message):
        PPOTrainer(args, tiny_tokenizer(), policy(), None, likes_even, rows(), peft_config=lora())


def test_a_size_set_before_the_trainer_is_made_is_overwritten_and_said(tmp_path, caplog):
    args = config(tmp_path)
    args.batch_size = 5
    made = PPOTrainer(args, tiny_tokenizer(), policy(), None, likes_even, rows(), peft_config=lora())
    assert made.args.batch_size == 8 and "batch_size=5 has no effect" in caplog.text


class Steps(TrainerCallback):
    """Notes at which iterations each event comes."""

    def __init__(self):
        self.came = {"save": [], "evaluate": [], "log": []}

    def on_save(self, args, state, control, **_):
        self.came["save"].append(state.global_step)

    def on_evaluate(self, args, state, control, **_):
        self.came["evaluate"].append(state.global_step)

    def on_log(self, args, state, control, logs, **_):
        if "objective/kl" in logs:
            self.came["log"].append(state.global_step)


STRATEGIES = {"save_strategy": "epoch", "eval_strategy": "epoch", "logging_strategy": "epoch"}


@pytest.mark.parametrize("how", ["given", "set", "replaced", "replaced after a trainer"])
def test_epoch_is_once_in_a_pass_over_the_prompts(tmp_path, how):
    """8 prompts in batches of 4: a pass is 2 iterations; the trainer before had 4 prompts, an iteration."""
    late = how == "set"
    args = config(tmp_path, per_device_train_batch_size=4, total_episodes=16, **({} if late else STRATEGIES))
    if late:
        for name, value in STRATEGIES.items():
            setattr(args, name, value)
    if how == "replaced after a trainer":
        PPOTrainer(
            args, tiny_tokenizer(), policy(), None, likes_even, rows(3, 4, 5, 6), peft_config=lora(),
            eval_dataset=rows(3),
        )  # fmt: skip
    if how.startswith("replaced"):
        args = dataclasses.replace(args, learning_rate=1e-4)
    steps = Steps()
    PPOTrainer(
        args, tiny_tokenizer(), policy(), None, likes_even, rows(), peft_config=lora(), eval_dataset=rows(3),
        callbacks=[steps],
    ).train()  # fmt: skip
    assert steps.came == {"save": [2, 4], "evaluate": [2, 4], "log": [2, 4]}
    assert {name: getattr(args, name) for name in STRATEGIES} == STRATEGIES


def test_a_strategy_that_is_replaced_goes_by_its_own_steps_again(tmp_path):
    """A pass of 8 prompts is 2 iterations; the default of eval_steps is 10, of logging_steps 1."""
    args = config(tmp_path, per_device_train_batch_size=4, **STRATEGIES)
    PPOTrainer(
        args, tiny_tokenizer(), policy(), None, likes_even, rows(), peft_config=lora(), eval_dataset=rows(3)
    )  # fmt: skip
    args = dataclasses.replace(args, eval_strategy="steps", save_steps=7)
    assert (args.eval_steps, args.logging_steps, args.save_steps) == (10, 1, 7)
    assert (args.eval_strategy, args.save_strategy, args.logging_strategy) == ("steps", "epoch", "epoch")


class Sets(TrainerCallback):
    def __init__(self, name, value):
        self.name, self.value = name, value

    def on_step_end(self, args, state, control, **_):
        setattr(args, self.name, self.value)


@pytest.mark.parametrize(("name", "value"), [("learning_rate", 1e-5), ("batch_size", 4), ("save_steps", 1)])
def test_a_field_that_is_set_too_late_is_refused(tmp_path, name, value):
    made = trainer(tmp_path, callbacks=[Sets(name, value)])
    with pytest.raises(UsageError, match=f"{name}={value} was set on args after PPOTrainer was made"):
        made.train()
    if name != "save_steps":
        made = trainer(tmp_path / "again")
        setattr(made.args, name, value)
        with pytest.raises(UsageError, match=f"{name}={value} was set on args after"):
            made.train()


def test_fields_that_are_read_anew_may_change_in_a_run(tmp_path):
    """The first of three steps is taken with the old value, the others with the new one."""
    losses = []
    for name, value in (("vf_coef", 0.1), ("vf_coef", 0.5), ("cliprange", 1e-3)):
        made = trainer(tmp_path / f"{name} {value}", callbacks=[Sets(name, value)], options={"save_strategy": "no"})
        made.train()
        losses.append([row["loss/policy_avg"] for row in read_metrics(tmp_path / f"{name} {value}")])
        assert getattr(made.ppo.config, name) == value and len(losses[-1]) == 3
    plain, value_weight, clipped = losses
    assert plain[0] == value_weight[0] == clipped[0]
    assert plain[2] != value_weight[2] and plain[1:] != clipped[1:]


class SetsBefore(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2:
            args.cliprange = 1e-3


def test_a_field_that_is_set_before_a_step_counts_in_it(tmp_path):
    """In the third of three, two of which are those of a run without it."""
    losses = []
    for name, callbacks in (("plain", []), ("set", [SetsBefore()])):
        trainer(tmp_path / name, callbacks=callbacks, options={"save_strategy": "no"}).train()
        losses.append([row["loss/policy_avg"] for row in read_metrics(tmp_path / name)])
    assert losses[0][:2] == losses[1][:2] and losses[0][2] != losses[1][2]


class KeepsOne(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            args.save_total_limit = 1


def test_saving_goes_by_what_was_set_at_the_end_of_the_step(tmp_path):
    trainer(tmp_path / "all", options={"save_steps": 1}).train()
    assert len(list((tmp_path / "all").glob("checkpoint-*"))) == 3
    trainer(tmp_path / "one", callbacks=[KeepsOne()], options={"save_steps": 1}).train()
    assert [path.name for path in (tmp_path / "one").glob("checkpoint-*")] == ["checkpoint-3"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("cliprange", -0.1, "cliprange=-0.1 .* above 0 and below 1"), ("gamma", "1", "gamma='1' .* a number")],
)
def test_a_value_that_cannot_be_used_is_refused_in_a_run_too(tmp_path, name, value, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, callbacks=[Sets(name, value)]).train()


def test_two_trainers_of_one_config_do_not_share_the_engines(tmp_path):
    args = config(tmp_path)
    one, two = (
        PPOTrainer(args, tiny_tokenizer(), policy(), None, likes_even, rows(), peft_config=lora()) for _ in "ab"
    )
    one.ppo.config.cliprange = 0.5
    assert two.ppo.config.cliprange == 0.2 and one.ppo.config is not two.ppo.config


@pytest.mark.parametrize("name", ["reward_model", "train_dataset", "policy_model"])
def test_an_attribute_that_is_replaced_in_vain_is_refused(tmp_path, name):
    made = trainer(tmp_path)
    setattr(made, name, object())
    with pytest.raises(UsageError, match=f"trainer.{name} was replaced after construction"):
        made.train()


def test_the_optimizer_may_be_replaced(tmp_path):
    made = trainer(tmp_path, options={"save_strategy": "no"})
    before = [p.detach().clone() for p in made.ppo.optimiser.parameters]
    made.optimizer = torch.optim.SGD(made.ppo.optimiser.parameters, lr=0.0)
    made.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(made.optimizer, lambda _: 1.0)
    made.train()
    assert all(torch.equal(p, b) for p, b in zip(made.ppo.optimiser.parameters, before, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [("step", r"update\(Rollout"), ("generate", "policy_model.generate"), ("log_stats", "log"), ("config", "args")],
)
def test_methods_of_the_old_loop_name_what_took_their_place(tmp_path, name, message):
    made = trainer(tmp_path)
    assert not hasattr(made, name)
    with pytest.raises(AttributeError, match=message):
        getattr(made, name)


def test_arguments_of_the_old_trainer_name_what_took_their_place(tmp_path):
    args, tokenizer, model = config(tmp_path), tiny_tokenizer(), policy()
    with pytest.raises(UsageError, match="config is now args, tokenizer is now processing_class"):
        PPOTrainer(config=args, model=model, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="processing_class is a LlamaForCausalLM; expected a tokenizer"):
        PPOTrainer(args, model, model, tokenizer)


@pytest.mark.parametrize("name", ["AutoModelForCausalLMWithValueHead", "create_reference_model"])
def test_helpers_of_the_old_loop_name_what_took_their_place(name):
    with pytest.raises(UsageError, match=f"{name}.*docs/migration.md"):
        getattr(rlhf_fast, name)
    with pytest.raises(UsageError, match=name):
        exec(f"from rlhf_fast import {name}")
