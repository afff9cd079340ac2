"""`PPOTrainer`: PPO with the arguments, events and methods of TRL 1.12's trainer, over `rlhf_fast.train.ppo`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.rewards.source import Scores
from rlhf_fast.rollout.rollout import Rollout
from rlhf_fast.runtime.device import seed_everything
from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, write_into
from rlhf_fast.runtime.identity import fingerprint
from rlhf_fast.runtime.loop import Hooks, finish, train
from rlhf_fast.runtime.output import hold, refuse_unwritable
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.saving import RESULTS
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.ppo import PPO, score_responses
from rlhf_fast.train.ppo_run import describe, run_of, save_policy
from rlhf_fast.train.rollout_log import RolloutLog
from rlhf_fast.trainer import hub
from rlhf_fast.trainer.config import PPOConfig
from rlhf_fast.trainer.events import Callback
from rlhf_fast.trainer.identity import HandedOver
from rlhf_fast.trainer.inputs import Collator, check_models, read_datasets
from rlhf_fast.trainer.optimisers import Optimisers, refuse_half, use_given
from rlhf_fast.trainer.roles import build_reward, use_models
from rlhf_fast.trainer.sampling import Completion, complete, evaluate, send_to_wandb, show
from rlhf_fast.trainer.surface import PolicyAndValue, Surface, old_arguments, refuse_overrides


class PPOTrainer(Surface):
    """Trains `model` by PPO; which model plays which role is said in `rlhf_fast.trainer.roles`.

    reward_model: a classifier with one output, a function of (prompts, responses, **columns), or a reward source.
    train_dataset, eval_dataset: rows with `input_ids`, or with text or messages. eval_dataset may be a dict of them.
    What is trained is trained in the models given, which stay the script's own objects. Everything that cannot be used
    raises `UsageError` here, methods that a subclass overrides in vain included. Of several processes, each
    of which makes the same trainer and calls the same methods, process 0 writes and prints. What differs from TRL, and
    why, is in docs/migration.md.
    """

    @old_arguments
    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel | PeftModel,
        ref_model: PreTrainedModel | PeftModel | None,
        reward_model: Any,
        train_dataset: Iterable[Any],
        value_model: Any = None,
        data_collator: Collator | None = None,
        eval_dataset: Iterable[Any] | Mapping[str, Iterable[Any]] | None = None,
        optimizers: Optimisers = (None, None),
        callbacks: list[Callback] | None = None,
        peft_config: object | None = None,
    ) -> None:
        refuse_overrides(self, PPOTrainer)
        check_models(args, model, ref_model, reward_model, value_model)
        refuse_half(*optimizers)
        args.settle()
        refuse_unwritable("output_dir", Path(str(args.output_dir)))
        models = (model, ref_model, reward_model, value_model)
        prompts, self.held_out = read_datasets(
            args, processing_class, models, train_dataset, eval_dataset, data_collator
        )
        seed_everything(args.seed)
        roles, policy_model = use_models(args, model, ref_model, value_model, peft_config)
        reward = build_reward(reward_model, args, prompts.columns)
        args.total_episodes = args.total_episodes or max(1, int(args.num_train_epochs * len(prompts)))
        ppo = PPO(
            args.run_config(), roles.policy, roles.reference, roles.critic, reward, processing_class, prompts,
            starts_as_reference=roles.starts_as_reference,
        )  # fmt: skip
        args.num_total_batches = ppo.iterations
        self.ppo, self.roles = ppo, roles
        self.hand_over(
            args=args, processing_class=processing_class, policy_model=policy_model, ref_model=ref_model,
            model=PolicyAndValue(policy_model, value_model, roles.critic), value_model=value_model,
            reward_model=reward_model, train_dataset=train_dataset, eval_dataset=eval_dataset,
            data_collator=data_collator or DataCollatorWithPadding(processing_class),
        )  # fmt: skip
        self.optimizer, self.lr_scheduler = optimizers
        self.create_optimizer_and_scheduler(ppo.iterations)
        self._use_optimizer()
        self.handed_over = HandedOver(
            args, ppo, roles, policy_model, ref_model, reward_model, value_model, fresh=peft_config is not None
        )
        self._begun_with: dict[str, Any] = {}  # once training begins, the facts of what was handed over
        super().__init__(args, ppo, processing_class, callbacks or [])
        args.remember()

    def train(self, resume_from_checkpoint: bool | str | None = None) -> None:
        """All iterations that are left. `resume_from_checkpoint`: a checkpoint's path, or True for the newest."""
        args, output = self.args, Path(str(self.args.output_dir))
        self.refuse_replaced()
        self._use_optimizer()
        self._begun_with = self._begun_with or self.handed_over.with_optimiser()
        args.refuse_changes(at_start=True)
        if resume_from_checkpoint:
            args.resume = "auto" if resume_from_checkpoint is True else resume_from_checkpoint
        args.remember()
        args.take_over(self.ppo.config, "train", "step")
        with hold(output):
            self._train(self.ppo.config, output)

    def _train(self, config: PPORunConfig, output: Path) -> None:
        start = choose_start(config, self._inputs(), self.handed_over.held)
        if start.finished:
            return
        ppo = self.ppo
        ppo.rollouts = RolloutLog(output, enabled=config.log_rollouts, special_tokens=ppo.reward.special_tokens)

        def save(folder: Path) -> None:
            self.save_model(str(folder), _internal_call=True)

        run = run_of(ppo, describe(ppo), save, hooks=_Calls(self))
        run.step = self._iterate(run.step)
        checkpoints = train(run, start)
        if config.save_strategy != "no":
            finish(checkpoints)

    def update(self, rollout: Rollout, scores: Iterable[float] | None = None) -> dict[str, float]:
        """One iteration on a rollout from elsewhere (`Rollout.from_responses`); returns its metrics.

        The reward scores it, unless `scores` has one number for each response. Its columns are filled in place. Of
        several processes each gives its part of the rollout.
        """
        self.args.take_over(self.ppo.config, "step")
        self.ppo.optimiser.refuse_stuck()
        if scores is None:
            lengths = rollout.prompt_lengths.tolist()
            ids = [sequence[:length] for sequence, length in zip(rollout.sequences(), lengths, strict=True)]
            rows = torch.arange(len(rollout), device=rollout.tokens.device)
            prompts = Prompts(ids, self.processing_class.batch_decode(ids))
            numbered = replace(rollout, prompt_rows=rows)
            return self.ppo.learn(rollout, score_responses(self.ppo.reward, self.processing_class, numbered, prompts))
        given = torch.tensor(list(scores), dtype=torch.float32)
        if given.shape != (len(rollout),):
            raise UsageError(f"got {len(given)} scores for {len(rollout)} responses; expected one for each.")
        return self.ppo.learn(rollout, Scores(given, {}))

    def evaluate(self) -> dict[str, float]:
        """Mean score and KL on held-out prompts, as `eval_objective/scores`, ...; `on_log` and `on_evaluate` follow."""
        if not self.held_out:
            raise UsageError("there is nothing to evaluate on: pass eval_dataset.")
        metrics = {
            f"{prefix}_{name}": value
            for prefix, prompts in self.held_out.items()
            for name, value in evaluate(self.ppo, prompts).items()
        }
        self.log(metrics)
        self.call("on_evaluate", metrics=metrics)
        return metrics

    def generate_completions(self, sampling: bool = False) -> list[Completion]:
        """Nearly greedy completions of the held-out prompts with their scores; the first five are printed.

        sampling: only of the first `per_device_eval_batch_size` prompts. Without eval_dataset there are none; nor are
        there in any process but 0.
        """
        if not is_main():
            return []
        count = self.args.per_device_eval_batch_size if sampling else None
        completions = [one for prompts in self.held_out.values() for one in complete(self.ppo, prompts, count)]
        if completions:
            show(completions)
            if "wandb" in (self.args.report_to or ()):
                send_to_wandb(completions)
        return completions

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The policy alone, with its tokenizer: a PEFT adapter, or the whole model where all of it was trained.

        Process 0 writes. Checkpoints and the end of training call it too, with `_internal_call`.
        """
        if not is_main():
            return
        if _internal_call:
            self._save(output_dir)
            return
        folder = output_dir or str(self.args.output_dir)
        with disk_errors(f"write the model to {folder!r}", "Files that are there are whole."):
            self._save(output_dir)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> None:  # fmt: skip
        """Write README.md, a short model card, into `output_dir`."""
        if is_main():
            folder = Path(str(self.args.output_dir))
            card = hub.model_card(model_name or folder.resolve().name, self.roles.base, dataset_name, tags)
            hub.write_card(folder, card)

    def push_to_hub(
        self, commit_message: str = "End of training", blocking: bool = True, token: str | None = None,
        revision: str | None = None, *, dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
    ) -> Any:  # fmt: skip
        """Save the policy to `output_dir` and upload its files, and no other, with a short model card.

        Of several processes, process 0 does; the others get None.
        """
        if not is_main():
            return None
        output = Path(str(self.args.output_dir))
        with disk_errors(f"write the model to {str(output)!r}", "Nothing was uploaded."):
            files = write_into(output, lambda folder: self.save_model(str(folder), _internal_call=True), name=RESULTS)
        return hub.push(
            self.args, self.roles.base, files, commit_message=commit_message, blocking=blocking, token=token,
            revision=revision, dataset_name=dataset_name, tags=tags,
        )  # fmt: skip

    def _iterate(self, step: Callable[[int], dict[str, float]]) -> Callable[[int], dict[str, float]]:
        """`step` with the callbacks, the log and the evaluation that go with it."""

        def iterate(iteration: int) -> dict[str, float]:
            self.call("on_step_begin")
            self.args.refuse_changes()
            self.args.take_over(self.ppo.config, "step")
            metrics = self.take_step(lambda: step(iteration))
            logged = self.log_is_due()
            if logged:  # before on_step_end, as in TRL: its callbacks may read the history
                self.log(metrics)
            self.call("on_step_end")
            if self.control.should_log and not logged:
                self.log(metrics)
            return metrics | (self.evaluate() if self.control.should_evaluate else {})

        return iterate

    def _after_step(self, end_step: Callable[..., None]) -> None:
        """The checkpoint, where one is due, and completions to look at."""
        self._end_step: Callable[..., None] | None = end_step
        if self.control.should_save:
            self._save_checkpoint(self.model, None)
            self._end_iteration(save=False)
            self.call("on_save")
        self._end_iteration(save=False)
        often, done = self.args.num_sample_generations, self.state.global_step - 1
        if often and done % max(1, self.ppo.iterations // often) == 0:
            self.generate_completions(sampling=True)

    def _save_checkpoint(self, model: object, trial: object) -> None:
        """The checkpoint of the iteration that was taken, where one is due; `model` and `trial` are transformers'."""
        self._end_iteration(save=True)

    def _end_iteration(self, *, save: bool) -> None:
        """Once an iteration, with its checkpoint or without."""
        end_step, self._end_step = self._end_step, None
        if end_step is not None:
            self.args.take_over(self.ppo.config, "step")
            end_step(due=save)

    def _use_optimizer(self) -> None:
        use_given(self.ppo.optimiser, self.optimizer, self.lr_scheduler, self.args.steps_per_rate)

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        """What `save_model` does in process 0. `state_dict` is transformers'; the policy's own weights are written."""
        folder = Path(output_dir or str(self.args.output_dir))
        write_into(folder, partial(save_policy, self.ppo, self.roles, self.processing_class), name=RESULTS)

    def _inputs(self) -> dict[str, Any]:
        """What the result depends on beside the config, as far as a checkpoint has to fit it."""
        prompts = self.ppo.prompts
        return {
            "contents of the data": fingerprint((prompts.ids, prompts.texts, prompts.columns)),
            **self.args.beside_run(),
            "rewards": [[source.name, weight] for source, weight in self.ppo.reward.sources],
            **self._begun_with,
        }


class _Calls(Hooks):
    """The trainer's callbacks and methods around the steps of the loop."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def begin(self, done: int) -> dict[str, float]:
        self.trainer.begin(done)
        return {}

    def after(self, end_step: Callable[..., None]) -> None:
        self.trainer._after_step(end_step)

    def stops(self) -> bool:
        return self.trainer.control.should_training_stop

    def end(self) -> None:
        self.trainer.call("on_train_end")
