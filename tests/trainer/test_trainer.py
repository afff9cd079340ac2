"""A run through `PPOTrainer`: events in order, control obeyed, metrics, evaluation, completions, results, resuming."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import PeftModel
from transformers import AutoModelForCausalLM, TrainerCallback, TrainerControl
from transformers.trainer_callback import TrainerState

from rlhf_fast import Rollout, UsageError
from rlhf_fast.rewards.source import Scores
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train.ppo import score_responses
from rlhf_fast.trainer import hub
from rlhf_fast.trainer.sampling import Completion, show
from tests.model_cases import tokens
from tests.trainer.cases import LENGTHS, classifier, likes_even, policy, rows, trainer


class Recorder(TrainerCallback):
    """Notes each event with the step at which it came; `stop_at` asks to stop there."""

    def __init__(self, stop_at: int | None = None, save_at: int | None = None) -> None:
        self.events: list[tuple[str, int]] = []
        self.logs: list[dict[str, float]] = []
        self.stop_at, self.save_at = stop_at, save_at

    def note(self, name, state, control):
        assert isinstance(state, TrainerState) and isinstance(control, TrainerControl)
        self.events.append((name, state.global_step))

    def on_init_end(self, args, state, control, model, processing_class, **_):
        self.note("init_end", state, control)

    def on_train_begin(self, args, state, control, **_):
        assert state.max_steps == args.num_total_batches
        self.note("train_begin", state, control)

    def on_step_begin(self, args, state, control, **_):
        self.note("step_begin", state, control)

    def on_step_end(self, args, state, control, optimizer, lr_scheduler, **_):
        self.note("step_end", state, control)
        assert state.episode == state.global_step * args.batch_size
        if state.global_step == self.save_at:
            control.should_save = True
        if state.global_step == self.stop_at:
            control.should_training_stop = True
        return control

    def on_log(self, args, state, control, logs, **_):
        self.note("log", state, control)
        self.logs.append(logs)

    def on_evaluate(self, args, state, control, metrics, **_):
        assert "eval_objective/scores" in metrics
        self.note("evaluate", state, control)

    def on_save(self, args, state, control, **_):
        self.note("save", state, control)

    def on_train_end(self, args, state, control, **_):
        self.note("train_end", state, control)


def test_events_come_in_the_order_of_trls_trainer(tmp_path):
    recorder = Recorder()
    options = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 2, "total_episodes": 32}
    trainer(tmp_path, options=options, eval_dataset=rows(3, 4), callbacks=[recorder]).train()
    assert recorder.events == [
        ("init_end", 0), ("train_begin", 0),
        ("step_begin", 0), ("step_end", 1),
        ("step_begin", 1), ("log", 2), ("step_end", 2), ("save", 2),
        ("step_begin", 2), ("step_end", 3), ("log", 3), ("evaluate", 3),
        ("step_begin", 3), ("log", 4), ("step_end", 4), ("log", 4), ("evaluate", 4), ("save", 4),
        ("train_end", 4),
    ]  # fmt: skip
    assert "objective/kl" in recorder.logs[0] and recorder.logs[0]["epoch"] == 2.0  # of 8 prompts, 8 a batch


class ReadsHistory(TrainerCallback):
    """Reads the iteration's numbers where it ends, and has the second one logged that the config does not log."""

    def __init__(self):
        self.read = []

    def on_step_end(self, args, state, control, **_):
        self.read.append((state.global_step, [row["step"] for row in state.log_history]))
        control.should_log = state.global_step == 2


@pytest.mark.parametrize(
    ("logging_steps", "expected"),
    [(1, [(1, [1]), (2, [1, 2]), (3, [1, 2, 3])]), (3, [(1, []), (2, []), (3, [2, 3])])],
)
def test_a_step_that_ends_is_in_the_history_already(tmp_path, logging_steps, expected):
    """`state.log_history[-1]` in on_step_end is the iteration's own, as in TRL, and no iteration is logged twice."""
    reader = ReadsHistory()
    made = trainer(tmp_path, options={"logging_steps": logging_steps, "save_strategy": "no"}, callbacks=[reader])
    made.train()
    assert reader.read == expected
    assert [row["step"] for row in made.state.log_history] == ([1, 2, 3] if logging_steps == 1 else [2, 3])


def test_a_callback_can_save_and_stop(tmp_path):
    recorder = Recorder(stop_at=2, save_at=1)
    made = trainer(tmp_path, options={"save_strategy": "no"}, callbacks=[recorder])
    made.train()
    assert [step for name, step in recorder.events if name == "step_end"] == [1, 2]
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert len(read_metrics(tmp_path)) == 2


def test_callbacks_are_added_and_removed(tmp_path):
    made, recorder = trainer(tmp_path), Recorder()
    made.add_callback(recorder)
    assert made.pop_callback(Recorder) is recorder
    made.train()
    assert recorder.events == []


def test_a_policy_learns_what_the_function_rewards(tmp_path):
    options = {
        "learning_rate": 1e-2, "total_episodes": 16 * 25, "lr_scheduler_type": "constant", "save_strategy": "no",
        "per_device_train_batch_size": 16, "num_ppo_epochs": 4, "stop_token": "eos",
    }  # fmt: skip
    trainer(tmp_path, options=options).train()
    scores = [row["objective/scores"] for row in read_metrics(tmp_path)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.2


def test_the_learning_rate_falls_once_an_iteration_as_in_trl(tmp_path):
    options = {"total_episodes": 32, "num_ppo_epochs": 3, "num_mini_batches": 2, "learning_rate": 8e-4}
    made = trainer(tmp_path, options=options)
    rates = []
    step = made.ppo.optimiser.adamw.step

    def counted(*args, **kwargs):
        rates.append(made.ppo.optimiser.adamw.param_groups[0]["lr"])
        return step(*args, **kwargs)

    made.ppo.optimiser.adamw.step = counted
    made.train()
    assert rates == pytest.approx([8e-4] * 6 + [6e-4] * 6 + [4e-4] * 6 + [2e-4] * 6)


def test_evaluation_is_the_mean_score_and_kl_of_held_out_prompts_and_repeats_itself(tmp_path):
    seen = []

    def reward(prompts, responses, **columns):
        seen.append(len(prompts))
        return likes_even(prompts, responses)

    held_out = {"short": rows(2, 3), "long": rows(9)}
    made = trainer(tmp_path, reward_model=reward, eval_dataset=held_out, options={"learning_rate": 1e-2})
    before = made.evaluate()
    assert before == made.evaluate() and seen[:2] == [2, 1]
    assert before["eval_short_objective/kl"] == pytest.approx(0, abs=1e-5)
    made.ppo.step()
    after = made.evaluate()
    assert abs(after["eval_short_objective/kl"]) > 1e-4
    with pytest.raises(UsageError, match="pass eval_dataset"):
        trainer(tmp_path).evaluate()
    with pytest.raises(UsageError, match="eval_dataset, which is None"):
        trainer(tmp_path, options={"eval_strategy": "steps"})


def test_completions_are_printed_with_their_scores(tmp_path, capsys, monkeypatch):
    assert trainer(tmp_path).generate_completions() == []
    made = trainer(tmp_path, eval_dataset=rows(3, 4, 5), options={"per_device_eval_batch_size": 2})
    completions = made.generate_completions()
    words = [" ".join(w for w in one.response.split() if not w.startswith("<")) for one in completions]
    assert [one.score for one in completions] == pytest.approx(likes_even([], words))
    assert completions[0].query == made.held_out["eval"].texts[0]
    assert completions == made.generate_completions()
    printed = capsys.readouterr().out
    assert "model response" in printed and completions[0].query.split()[0] in printed
    assert len(made.generate_completions(sampling=True)) == 2
    sent = {}
    wandb = SimpleNamespace(run=object(), log=sent.update, Table=lambda columns, data: (columns, data))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    made.args.report_to = ["wandb"]
    made.generate_completions()
    assert sent["completions"][0] == ["query", "model response", "score"] and len(sent["completions"][1]) == 3


@pytest.mark.parametrize(("often", "expected"), [(0, []), (2, [1, 3]), (10, [1, 2, 3, 4])])
def test_completions_come_as_often_as_num_sample_generations_says(tmp_path, monkeypatch, often, expected):
    options = {"num_sample_generations": often, "total_episodes": 32}
    made = trainer(tmp_path, options=options, eval_dataset=rows(3))
    came = []
    monkeypatch.setattr(made, "generate_completions", lambda sampling: came.append((made.state.global_step, sampling)))
    made.train()
    assert came == [(step, True) for step in expected]


def test_the_policy_is_saved_as_an_adapter_or_as_a_model(tmp_path):
    for name, given in (("lora", {}), ("full", {"peft_config": None})):
        made = trainer(tmp_path, options={"learning_rate": 1e-2}, **given)
        made.ppo.step()
        made.save_model(str(tmp_path / name))
    prompt = torch.tensor(tokens(6))
    adapter = PeftModel.from_pretrained(policy(), str(tmp_path / "lora"))
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    with torch.no_grad():
        logits = [model(prompt).logits for model in (policy(), adapter, whole)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3 and (logits[0] - logits[2]).abs().max() > 1e-3


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    options = {"save_steps": 2, "total_episodes": 32, "lr_scheduler_type": "constant"}
    trainer(tmp_path / "whole", options=options | {"output_dir": str(tmp_path / "whole")}).train()
    part = options | {"output_dir": str(tmp_path / "part")}
    made = trainer(tmp_path, options=part)
    call = made.call

    def interrupted(event, **given):
        call(event, **given)
        if event == "on_step_begin" and made.state.global_step == 3:
            raise KeyboardInterrupt

    made.call = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.train()
    again = trainer(tmp_path, options=part)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "part")]
    assert adapters[0] == adapters[1]
    whole, parts = (
        [{k: v for k, v in row.items() if k not in ("seconds", "eps")} for row in read_metrics(tmp_path / name)]
        for name in ("whole", "part")
    )
    assert json.dumps(whole) == json.dumps(parts)


def test_an_update_takes_a_rollout_from_elsewhere(tmp_path):
    made = trainer(tmp_path, reward_model=classifier(), options={"stop_token": "eos"})
    prompts, responses = tokens(*LENGTHS), [[7, 9, 2], [11] * 6] * 4
    rollout = Rollout.from_responses(
        prompts, responses, finished=[True, False] * 4, budget=6, score_at=made.args.score_at
    )
    with torch.no_grad():
        expected = score_responses(made.ppo.reward, made.processing_class, rollout, made.ppo.prompts)
    metrics = made.update(rollout)
    assert metrics["objective/scores"] == pytest.approx(float(expected.total.mean()), abs=1e-5)
    assert made.update(rollout, scores=[1.0, 2.0] * 4)["objective/scores"] == pytest.approx(1.5)
    with pytest.raises(UsageError, match="got 3 scores for 8 responses"):
        made.update(rollout, scores=[1.0] * 3)


def test_a_response_without_eos_is_penalised_where_nothing_ends_one(tmp_path):
    made = trainer(tmp_path, options={"missing_eos_penalty": 2.0})
    rollout = Rollout.from_responses(
        tokens(3, 4), [[7, 2, 9], [7, 8, 9]], finished=[False, False], budget=3, score_at="eos+1"
    )
    assert made.ppo.sampling.stop_ids == ()
    assert made.ppo.score(rollout, Scores(torch.tensor([1.0, 1.0]), {})).total.tolist() == [1.0, -1.0]


def test_an_optimizer_of_the_scripts_own_takes_the_steps(tmp_path):
    model, value = policy(), classifier(seed=5)
    sgd = torch.optim.SGD([*model.parameters(), *value.parameters()], lr=0.0)
    before = model.lm_head.weight.clone()
    given = {"model": model, "value_model": value, "peft_config": None}
    made = trainer(tmp_path, optimizers=(sgd, None), **given)
    made.train()
    assert torch.equal(before, model.lm_head.weight) and made.callback_handler.optimizer is sgd
    other = torch.optim.SGD(policy().parameters(), lr=0.0)
    with pytest.raises(UsageError, match="expected exactly those"):
        trainer(tmp_path, optimizers=(other, None))
    with pytest.raises(UsageError, match="give both"):
        trainer(tmp_path, optimizers=(None, torch.optim.lr_scheduler.LambdaLR(other, lambda _: 1.0)))


def test_completions_command_no_terminal(capsys):
    show([Completion("ask\x1b[2J", "\x9b31m\rdone", 0.5), Completion("\u202eq", "a\x07", 1.0)])
    printed = capsys.readouterr().out
    assert "ask\\x1b[2J" in printed and "\\x9b31m\\x0ddone" in printed and "\\u202eq" in printed
    assert not set("\x1b\x9b\r\x07\u202e") & set(printed)


UPLOADED = [
    "README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "ppo.json",
    "tokenizer.json", "tokenizer_config.json",
]  # fmt: skip


def test_push_to_hub_uploads_the_policys_files_with_a_card_and_no_others(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, name, private, exist_ok):
            calls.append(("repo", name, private))
            return SimpleNamespace(repo_id=f"me/{name}")

        def upload_folder(self, **given):
            calls.append(("upload", given["repo_id"], sorted(given["allow_patterns"]), given["commit_message"]))
            return "commit"

    assert hub.HfApi is huggingface_hub.HfApi
    monkeypatch.setattr(hub, "HfApi", Api)
    for name in ("rollouts.jsonl", "metrics.jsonl", "notes.txt", ".run.json.tmp", "old.safetensors"):
        (tmp_path / name).write_text("private")
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "adapter_config.json").write_text("{}")
    made = trainer(tmp_path, options={"hub_model_id": "mine", "hub_token": "t", "hub_private_repo": True})
    assert made.push_to_hub(dataset_name="org/data") == "commit"
    assert calls == [
        ("token", "t"), ("repo", "mine", True), ("upload", "me/mine", UPLOADED, "End of training")
    ]  # fmt: skip
    card = (tmp_path / "README.md").read_text()
    assert "org/data" in card and "ppo" in card
    there = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(filter_repo_objects(there, allow_patterns=UPLOADED)) == UPLOADED
