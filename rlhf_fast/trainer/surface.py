"""What a script finds around the run on TRL's trainer: attributes, methods to call and to override, and old names.

PolicyAndValue     `trainer.model`: the script's policy, and its value model
Surface            attributes and methods of TRL's trainer that the algorithm has no use for
refuse_overrides   every method that a subclass overrides is called, or named at construction
old_arguments      the arguments of TRL up to 0.11, answered with those that took their place
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, wraps
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from peft import PeftModel
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, trainer_pt_utils

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.roles import ValueModel
from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.trainer.events import Events

CALLED = frozenset({
    "save_model", "_save", "_save_checkpoint", "create_optimizer", "create_scheduler", "create_optimizer_and_scheduler",
    "log", "evaluate", "generate_completions",
})  # fmt: skip
"""Methods that training calls, as TRL's does, so that overriding them has its effect."""
FOR_THE_SCRIPT = frozenset({
    "train", "update", "push_to_hub", "create_model_card", "save_state", "log_metrics", "save_metrics",
    "metrics_format", "is_world_process_zero", "is_local_process_zero", "add_callback", "pop_callback",
    "remove_callback", "get_num_trainable_parameters",
})  # fmt: skip
"""Methods that only the script itself calls."""
INSTEAD = {
    "compute_loss": "the loss is PPO's, whose terms are fields of PPOConfig",
    "training_step": "a callback's on_step_end comes after each iteration",
    "get_train_dataloader": "pass the rows as train_dataset and, if need be, a data_collator",
    "get_eval_dataloader": "pass the rows as eval_dataset",
    "predict": "evaluate() scores responses to held-out prompts, generate_completions() returns them",
    "null_ref_context": "pass ref_model, or ref_adapter_name in PPOConfig",
}
OLD = {
    "generate": "train() samples; trainer.policy_model.generate(...) gives a text",
    "step": "train() runs the whole loop, with the reward as reward_model. For responses from elsewhere: "
    "trainer.update(Rollout.from_responses(prompts, responses, finished=..., budget=..., score_at=...), scores=[...])",
    "log_stats": "train() logs; trainer.log({...}) logs more",
    "save_pretrained": "trainer.save_model(folder) saves the policy, trainer.policy_model.save_pretrained(folder) too",
    "config": "the config is trainer.args",
    "tokenizer": "the tokenizer is trainer.processing_class",
    "current_device": "the device is trainer.accelerator.device",
}
"""Attributes of the PPOTrainer of TRL up to 0.11, and what has taken their place."""
OLD_ARGUMENTS = {
    "config": "args", "tokenizer": "processing_class", "dataset": "train_dataset", "optimizer": "optimizers",
    "lr_scheduler": "optimizers", "num_shared_layers": "peft_config", "policy": "model", "ref_policy": "ref_model",
}  # fmt: skip
HANDED_OVER = (
    "args", "processing_class", "model", "policy_model", "ref_model", "reward_model", "value_model", "train_dataset",
    "eval_dataset", "data_collator",
)  # fmt: skip


class PolicyAndValue(nn.Module):
    """The policy and, where the script gave one, the value model. What it has not is looked up in the policy."""

    def __init__(self, policy: nn.Module, value_model: Any, critic: ValueModel) -> None:
        super().__init__()
        self.policy, self.value_model = policy, value_model
        if not isinstance(value_model, nn.Module):  # the critic is an adapter or a head of ours
            self.critic_parameters = nn.ParameterList(p for _, p in critic.named_parameters())

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("policy"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.policy(*args, **kwargs)


class Surface(Events):
    """Attributes and methods of TRL's trainer. Made before the run's own state, by `hand_over`."""

    optimizer: Any
    lr_scheduler: Any
    log_metrics = trainer_pt_utils.log_metrics
    save_metrics = trainer_pt_utils.save_metrics
    save_state = trainer_pt_utils.save_state

    def hand_over(self, **given: Any) -> None:
        """Keep what the script gave, as attributes of the same names; see `refuse_replaced`."""
        vars(self).update(given)
        self._given = {name: given[name] for name in HANDED_OVER}

    def refuse_replaced(self) -> None:
        """Raise `UsageError` for an attribute that was set after construction, where it would have no effect."""
        for name, value in self._given.items():
            if getattr(self, name) is not value:
                raise UsageError(f"trainer.{name} was replaced after construction, which has no effect; pass it then.")

    def __getattr__(self, name: str) -> Any:
        if name in OLD:
            raise AttributeError(f"PPOTrainer has no {name}, as in TRL since 0.12: {OLD[name]}. See docs/migration.md.")
        if not name.startswith("_") and hasattr(Trainer, name):
            remedy = INSTEAD.get(name, "training calls callbacks, and methods that docs/migration.md names")
            raise AttributeError(
                f"PPOTrainer has no {name} of transformers' trainer, whose loop is not PPO's; {remedy}."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @cached_property
    def accelerator(self) -> Accelerator:
        """For the script's own use (`unwrap_model`, `print`, `device`); training does not go through it."""
        return Accelerator(cpu=self.args.use_cpu)

    @property
    def dataloader(self) -> DataLoader[Any]:
        """The prompts to train on in padded batches, to be looked at; training draws them by itself, unpadded."""
        return self._batches(self.ppo.prompts, int(self.args.local_batch_size or 1))

    @property
    def eval_dataloader(self) -> DataLoader[Any]:
        held_out = [ids for prompts in self.held_out.values() for ids in prompts.ids]
        return self._batches(Prompts(held_out, [""] * len(held_out)), self.args.per_device_eval_batch_size)

    def get_train_dataloader(self) -> DataLoader[Any]:
        return self.dataloader

    def get_eval_dataloader(self, eval_dataset: object = None) -> DataLoader[Any]:
        return self.eval_dataloader

    def _batches(self, prompts: Prompts, size: int) -> DataLoader[Any]:
        rows: Any = [{"input_ids": ids} for ids in prompts.ids]
        return DataLoader(rows, batch_size=size, collate_fn=self.data_collator)

    @property
    def is_peft_model(self) -> bool:
        return isinstance(self.policy_model, PeftModel)

    @property
    def stop_token_id(self) -> int | None:
        """The first of the tokens that end a response."""
        return next(iter(self.ppo.sampling.stop_ids), None)

    @property
    def train_dataset_len(self) -> int:
        return len(self.ppo.prompts)

    @property
    def local_seed(self) -> int:
        return self.args.seed

    @property
    def hub_model_id(self) -> str | None:
        return self.args.hub_model_id

    def is_world_process_zero(self) -> bool:
        return is_main()

    def is_local_process_zero(self) -> bool:
        return self.args.local_process_index == 0

    def get_num_trainable_parameters(self) -> int:
        """Numbers that training changes, of policy and critic."""
        return sum(p.numel() for p in self.ppo.optimiser.parameters)

    def metrics_format(self, metrics: dict[str, float]) -> dict[str, Any]:
        return trainer_pt_utils.metrics_format(metrics)

    def null_ref_context(self) -> AbstractContextManager[Any]:
        """Within it `policy_model` is the bare base, where it is a `PeftModel`."""
        return self.policy_model.disable_adapter() if self.is_peft_model else nullcontext()

    # -- optimiser and schedule, which a subclass may make itself

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Set `optimizer` and `lr_scheduler` unless they are set; `num_training_steps` is the number of iterations."""
        self.create_optimizer()
        self.create_scheduler(num_training_steps=num_training_steps, optimizer=self.optimizer)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW by the config, unless `optimizer` is set."""
        if self.optimizer is None:
            self.optimizer = self.ppo.optimiser.adamw
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The config's schedule of `optimizer`, unless `lr_scheduler` is set."""
        own = self.ppo.optimiser
        optimizer = self.optimizer if optimizer is None else optimizer
        if self.lr_scheduler is None and optimizer is own.adamw:
            self.lr_scheduler = own.schedule
        elif self.lr_scheduler is None:
            scale, steps = own.schedule.lr_lambdas[0], self.args.steps_per_rate
            self.lr_scheduler = LambdaLR(optimizer, lambda iteration: scale(iteration * steps))
        return self.lr_scheduler


def refuse_overrides(trainer: Surface, base: type) -> None:
    """Raise `UsageError` for a method of the trainer that a subclass of `base` overrides and that training never calls.

    Methods of other names are the subclass's own; one that is used inside the trainer would be called by mistake.
    """
    classes = type(trainer).__mro__
    hooks = {name for name in dir(Trainer) if not name.startswith("__")}
    inner = {name for name in dir(base) if not name.startswith("__")}
    for cls in classes[: classes.index(base)]:
        for name in vars(cls):
            if name in CALLED | FOR_THE_SCRIPT or name not in hooks | inner:
                continue
            if name in hooks or name in INSTEAD:
                remedy = INSTEAD.get(name, f"training calls {', '.join(sorted(CALLED))}, and callbacks")
                raise UsageError(f"{cls.__name__} overrides {name}, which PPO never calls. Remove it; {remedy}.")
            raise UsageError(f"{cls.__name__} defines {name}, a name that PPOTrainer uses itself; choose another name.")


def old_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """`init`, which answers arguments of TRL up to 0.11 with a `UsageError` that says what they are called now."""

    @wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        old = [name for name in kwargs if name in OLD_ARGUMENTS]
        if len(args) > 1 and isinstance(args[1], nn.Module):
            raise UsageError(
                f"processing_class is a {type(args[1]).__name__}; expected a tokenizer. TRL up to 0.11 took config, "
                "model, ref_model, tokenizer; now the order is args, processing_class, model, ref_model, reward_model, "
                "train_dataset. See docs/migration.md."
            )
        if old:
            names = ", ".join(f"{name} is now {OLD_ARGUMENTS[name]}" for name in old)
            raise UsageError(
                f"PPOTrainer was given {', '.join(old)}, as in older versions of TRL: {names}. The reward is an "
                "argument too (reward_model), and train() runs the loop. See docs/migration.md."
            )
        init(self, *args, **kwargs)

    return checked
