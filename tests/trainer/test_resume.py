"""A trainer's run goes on with the models, optimiser and schedule that it had, and with no others."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from rlhf_fast import ClassifierReward, UsageError
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.trainer.identity import digest
from tests.tiny_tokenizer import tiny_tokenizer
from tests.trainer.cases import classifier, likes_even, lora, policy, trainer

EVERY = {
    "save_steps": 1, "response_length": 3, "num_ppo_epochs": 1, "per_device_train_batch_size": 4,
    "total_episodes": 4 * 3,
}  # fmt: skip
"""3 iterations of one step, with a checkpoint of each."""


class Stops(TrainerCallback):
    """Ends the process, as it were, after an iteration's checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def stopped(folder, **given):
    """A run of 3 iterations that ended after the second, with a checkpoint of each."""
    options = EVERY | given.pop("options", {})
    made = trainer(folder, callbacks=[Stops(2)], options=options, **given)
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert (folder / "checkpoint-2").is_dir()
    return made


def resume(folder, **given):
    options = EVERY | given.pop("options", {})
    made = trainer(folder, options=options, **given)
    made.train(resume_from_checkpoint=True)
    return made


def metrics(folder):
    rows = read_metrics(folder)
    return json.dumps([{k: v for k, v in row.items() if k not in ("seconds", "eps")} for row in rows])


def touched(model, name: str):
    """`model` with one number of one tensor changed, of all that it has."""
    with torch.no_grad():
        dict(model.named_parameters())[name].view(-1)[5] += 0.25
    return model


def with_value(model, **values):
    for name, value in values.items():
        setattr(model.config, name, value)
    return model


BASE = {"model": policy, "reward_model": lambda: likes_even}
FULL = {"peft_config": lambda: None, "ref_model": policy, "value_model": lambda: classifier(seed=5)}
SCORED = {"reward_model": classifier}
TEXTS = {"reward_model": lambda: ClassifierReward("scorer", classifier(), tiny_tokenizer())}
ADAPTED = {"model": lambda: adapted(), "peft_config": lambda: None}


def adapted(seed: int = 1, **options) -> PeftModel:
    base = policy()
    torch.manual_seed(seed)
    model = get_peft_model(base, lora(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def of(made, **others):
    """New objects, as a script that is started again makes them."""
    return {name: make() for name, make in (made | others).items()}


NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
A = "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"
DIFFERENCES = {
    "a new adapter": (BASE, [
        ({"model": lambda: touched(policy(), UP)}, "weights of model was '[0-9a-f]{16}' and is '[0-9a-f]{16}'"),
        ({"model": lambda: with_value(policy(), rms_norm_eps=1e-3)}, "config of model was"),
        ({"peft_config": lambda: lora(lora_alpha=16)},
         r"adapter of model was 'r 4 and scale 2 on 14 layers .* and is 'r 4 and scale 4 on 14 layers"),
    ]),
    "a given adapter": (BASE | ADAPTED | SCORED, [
        ({"model": lambda: adapted(seed=2)}, "weights of the adapter of model was"),
        ({"model": lambda: touched(adapted(), A)}, "weights of the adapter of model was"),
        ({"model": lambda: adapted(lora_alpha=4)}, "adapter of model was"),
        ({"reward_model": lambda: touched(classifier(), "score.weight")}, "weights of reward_model was"),
        ({"reward_model": lambda: with_value(classifier(), rms_norm_eps=1e-3)}, "config of reward_model was"),
    ]),
    "all weights": (BASE | FULL | TEXTS, [
        ({"reward_model": lambda: ClassifierReward("scorer", classifier(seed=4), tiny_tokenizer())},
         "weights of reward_model was"),
        ({"ref_model": lambda: touched(policy(), "lm_head.weight")}, "weights of the reference was"),
        ({"model": lambda: touched(policy(), NORM)}, "weights of model was"),
        ({"value_model": lambda: classifier(seed=6)}, "weights of value_model was"),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENCES)
def test_objects_that_differ_are_named_before_the_first_step(tmp_path, case):
    made, differences = DIFFERENCES[case]
    stopped(tmp_path, **of(made))
    for other, message in differences:
        with pytest.raises(UsageError, match=rf"checkpoint-2 is of another run: (?:.*; )?{message}"):
            resume(tmp_path, **of(made, **other))
        assert len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize("made", [BASE | SCORED, BASE | FULL, BASE | ADAPTED | TEXTS])
def test_the_same_objects_made_anew_go_on_bit_for_bit(tmp_path, made):
    stopped(tmp_path / "part", **of(made))
    resume(tmp_path / "part", **of(made))
    trainer(tmp_path / "whole", options=EVERY, **of(made)).train()
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")


def test_a_policy_as_the_checkpoint_holds_it_goes_on_and_so_does_the_one_before_it(tmp_path):
    """A whole policy with a reference of its own, and an adapter: first as saved, then as the run began."""
    for name, made, load in (
        ("full", BASE | FULL, lambda folder: AutoModelForCausalLM.from_pretrained(folder)),
        ("adapter", BASE | ADAPTED, lambda folder: PeftModel.from_pretrained(policy(), folder, is_trainable=True)),
    ):
        folder = tmp_path / name
        stopped(folder, **of(made))
        saved = load(str(folder / "checkpoint-2"))
        with pytest.raises(KeyboardInterrupt):
            trainer(folder, callbacks=[Stops(2)], options=EVERY, **(of(made) | {"model": saved})).train(True)
        resume(folder, **of(made))
        trainer(tmp_path / f"{name} whole", options=EVERY, **of(made)).train()
        assert metrics(folder) == metrics(tmp_path / f"{name} whole")


def test_a_trained_policy_is_no_reference(tmp_path):
    """Without ref_model the reference is a copy of the model given: the checkpoint's policy would be the wrong one."""
    made = BASE | {"peft_config": lambda: None}
    stopped(tmp_path, **of(made))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    with pytest.raises(UsageError, match="is of another run: weights of the reference was"):
        resume(tmp_path, **(of(made) | {"model": saved}))


def test_the_same_trainer_goes_on_and_a_finished_run_says_so(tmp_path, caplog):
    """Its objects have been trained meanwhile."""
    made = stopped(tmp_path, **of(BASE | FULL))
    made.callback_handler.callbacks = [c for c in made.callback_handler.callbacks if not isinstance(c, Stops)]
    made.train(resume_from_checkpoint=True)
    assert len(read_metrics(tmp_path)) == 3
    resume(tmp_path, **of(BASE | FULL))
    assert "is finished already" in caplog.text


class EndsEarly(TrainerCallback):
    """Asks the trainer to end after an iteration."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step == self.step
        return control


def test_a_run_that_a_callback_ended_goes_on_and_a_new_one_may_take_its_place(tmp_path, caplog):
    early, whole = tmp_path / "early", tmp_path / "whole"
    trainer(early, callbacks=[EndsEarly(2)], options=EVERY, **of(BASE)).train()
    assert len(read_metrics(early)) == 2 and (early / "adapter_model.safetensors").is_file()
    resume(early, **of(BASE))
    assert "a callback ended the run in" in caplog.text and "after step 2" in caplog.text
    trainer(whole, options=EVERY, **of(BASE)).train()
    assert metrics(early) == metrics(whole)
    resume(early, **of(BASE))
    assert "is finished already" in caplog.text
    trainer(early, callbacks=[EndsEarly(1)], options=EVERY, **of(BASE)).train()  # without resuming: anew
    assert len(read_metrics(early)) == 1


def test_a_digest_tells_any_number_and_any_order_and_reads_odd_sizes():
    """65 numbers of 2 bytes are 16 whole numbers of 64 bits and 2 bytes more."""
    tensors = {"a": torch.arange(65, dtype=torch.bfloat16), "b": torch.randn(3, 7)}
    whole = digest(tensors)
    assert digest({"b": tensors["b"].clone(), "a": tensors["a"].clone()}) == whole
    for place in range(65):
        other = tensors["a"].clone()
        other[place] += 0.5
        assert digest(tensors | {"a": other}) != whole
    assert digest(tensors | {"b": tensors["b"].flip(0)}) != whole
    assert digest(tensors | {"b": tensors["b"].reshape(7, 3)}) != whole
    assert digest(tensors | {"a": tensors["a"].float()}) != whole
    cut = torch.arange(66, dtype=torch.bfloat16)[1:]  # begins between two whole numbers
    assert digest({"a": cut - 1, "b": tensors["b"]}) == whole and digest({"a": cut}) == digest({"a": cut.clone()})
    assert digest({"a": torch.zeros(0)}) != digest({"a": torch.zeros(1)})


SCHEDULES = {
    "step": lambda own: StepLR(own, 1, 0.5),
    "lambda": lambda own: LambdaLR(own, lambda i: 1 / (1 + i)),
    "cosine": lambda own: CosineAnnealingLR(own, 5),
    "one cycle": lambda own: OneCycleLR(own, 1e-2, total_steps=9),
    "milestones": lambda own: MultiStepLR(own, [1, 2]),
    "one after another": lambda own: SequentialLR(own, [StepLR(own, 1, 0.5), CosineAnnealingLR(own, 4)], [2]),
}


def pair(made, schedule, optimizer=torch.optim.SGD, **options):
    own = optimizer([*made["model"].parameters(), *made["value_model"].parameters()], lr=1e-2, **options)
    return own, schedule(own)


def given_pair(schedule, optimizer=torch.optim.SGD, **options):
    made = of(BASE | FULL)
    return made | {"optimizers": pair(made, schedule, optimizer, **options)}


@pytest.mark.parametrize(("name", "preset"), [*((name, "trl") for name in SCHEDULES), ("step", "rlhf_fast")])
def test_a_given_schedule_goes_on_where_it_stood(tmp_path, name, preset):
    """Under TRL's formulas it takes a step an iteration, under ours one an optimiser step; momentum goes on too."""
    options = {"preset": preset, "num_ppo_epochs": 2}

    def given():
        return given_pair(SCHEDULES[name], momentum=0.9) | {"options": options}

    stopped(tmp_path / "part", **given())
    again = resume(tmp_path / "part", **given())
    whole = trainer(tmp_path / "whole", **(given() | {"options": EVERY | options}))
    whole.train()
    rates = [one.lr_scheduler.get_last_lr() for one in (again, whole)]
    assert rates[0] == rates[1] != [1e-2]
    groups = [{k: v for k, v in one.optimizer.param_groups[0].items() if k != "params"} for one in (again, whole)]
    assert groups[0] == groups[1]
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    assert torch.equal(again.policy_model.lm_head.weight, whole.policy_model.lm_head.weight)


def test_the_rate_after_a_resume_is_that_of_the_schedule(tmp_path):
    """Halved once an iteration from 0.01: 0.01 / 2^3 after three."""
    stopped(tmp_path, **given_pair(SCHEDULES["step"]))
    again = resume(tmp_path, **given_pair(SCHEDULES["step"]))
    assert again.lr_scheduler.get_last_lr() == [pytest.approx(0.00125)]


def test_another_schedule_or_optimizer_is_named(tmp_path):
    stopped(tmp_path, **given_pair(SCHEDULES["step"], momentum=0.9))
    for other, message in (
        (given_pair(lambda own: StepLR(own, 1, 0.9), momentum=0.9), r"schedule StepLR was .*: 0\.5.* and is .*: 0\.9"),
        (given_pair(SCHEDULES["cosine"], momentum=0.9), "schedule CosineAnnealingLR was None"),
        (given_pair(SCHEDULES["step"], momentum=0.8), r"optimizer SGD was .*: 0\.9.* and is .*: 0\.8"),
        (of(BASE | FULL), "optimizer SGD was .* and is None"),
    ):
        with pytest.raises(UsageError, match=message):
            resume(tmp_path, **other)
    assert len(read_metrics(tmp_path)) == 2


def test_objects_as_the_checkpoint_left_them_go_on_in_another_trainer(tmp_path):
    """As in a notebook, where models, optimiser and schedule are those that the first run has moved."""
    made = given_pair(SCHEDULES["step"], momentum=0.9)
    stopped(tmp_path / "part", **made)
    resume(tmp_path / "part", **made)
    trainer(tmp_path / "whole", options=EVERY, **given_pair(SCHEDULES["step"], momentum=0.9)).train()
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")


class Keeps:
    """A scale that keeps more than a number."""

    def __init__(self) -> None:
        self.seen = torch.zeros(2)

    def __call__(self, step: int) -> float:
        return 1.0


class Counts:
    def __init__(self, optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: given_pair(lambda own: ReduceLROnPlateau(own)), r"ReduceLROnPlateau, whose step\(\) needs metrics"),
        (lambda: given_pair(lambda own: LambdaLR(own, Keeps())), "LambdaLR's lr_lambdas holds a Tensor"),
        (lambda: given_pair(Counts), "Counts without state_dict and load_state_dict"),
        (lambda: given_pair(lambda own: StepLR(own, 1), torch.optim.LBFGS), r"LBFGS, whose step\(\) needs closure"),
    ],
)
def test_a_pair_that_cannot_be_saved_is_refused_at_once(tmp_path, given, message):
    with pytest.raises(UsageError, match=message):
        trainer(tmp_path, **given())


class Halves(torch.optim.SGD):
    """Keeps a number for each parameter, as Adafactor does, and what no checkpoint holds where it is asked to."""

    def __init__(self, parameters, lr, keep=None) -> None:
        super().__init__(parameters, lr)
        self.keep = keep

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].update({"seen": self.state[p].get("seen", 0) + 1} | (self.keep or {}))
                p.data -= group["lr"] * p.grad / self.state[p]["seen"] if p.grad is not None else 0


def test_numbers_that_an_optimizer_keeps_go_on_and_other_things_are_named(tmp_path):
    stopped(tmp_path / "part", **given_pair(SCHEDULES["step"], Halves))
    again = resume(tmp_path / "part", **given_pair(SCHEDULES["step"], Halves))
    assert {state["seen"] for state in again.optimizer.state.values()} == {3}  # one step in each of 3 iterations
    trainer(tmp_path / "whole", options=EVERY, **given_pair(SCHEDULES["step"], Halves)).train()
    assert metrics(tmp_path / "part") == metrics(tmp_path / "whole")
    with pytest.raises(UsageError, match=r"Halves keeps a dict for a parameter \(odd\), which no checkpoint holds"):
        trainer(tmp_path / "odd", **given_pair(SCHEDULES["step"], Halves, keep={"odd": {}})).train()


def test_a_reward_function_that_holds_a_model_is_told_by_it(tmp_path):
    class Judge:
        def __init__(self, model) -> None:
            self.model, self.__name__ = model, "judge"

        def __call__(self, prompts, responses, **columns):
            return likes_even(prompts, responses)

    stopped(tmp_path, reward_model=Judge(classifier()))
    with pytest.raises(UsageError, match="weights of reward_model was"):
        resume(tmp_path, reward_model=Judge(copy.deepcopy(touched(classifier(), "score.weight"))))
    resume(tmp_path, reward_model=Judge(classifier()))
