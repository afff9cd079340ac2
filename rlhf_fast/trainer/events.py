"""State, control and callbacks of a run, as transformers' trainer has them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback, ExportableState
from transformers.trainer_utils import speed_metrics

from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.train.ppo import PPO
from rlhf_fast.trainer.config import PPOConfig

Callback = TrainerCallback | type[TrainerCallback]


@dataclass
class PPOState(TrainerState):
    """transformers' state, and the responses sampled so far."""

    episode: int = 0


class DefaultFlow(DefaultFlowCallback):
    """transformers' default flow, which counts steps: an event of each pass comes every so many of them."""

    def __init__(self, prompts: int) -> None:
        self.prompts = prompts

    def on_step_end(self, args: PPOConfig, state: TrainerState, control: TrainerControl, **given: Any) -> Any:  # type: ignore[override]
        return super().on_step_end(args.by_steps(self.prompts), state, control, **given)


class Events:
    """Calls transformers' callbacks in order; the control that they return is `control`.

    `model` is what they get. The default flow decides from the config when to log, evaluate and save; those of
    `report_to` follow, then the ones given.
    """

    model: Any

    def __init__(
        self, args: PPOConfig, ppo: PPO, tokenizer: PreTrainedTokenizerBase, callbacks: list[Callback]
    ) -> None:
        self.args, self.ppo = args, ppo
        model, optimiser = self.model, ppo.optimiser
        own = [DefaultFlow(len(ppo.prompts)), *get_reporting_integration_callbacks(args.report_to)]
        self.callback_handler = CallbackHandler(
            [*own, *callbacks], model, tokenizer, optimiser.adamw, optimiser.schedule
        )
        self.control = TrainerControl()
        stateful = [cb for cb in [*self.callback_handler.callbacks, self.control] if isinstance(cb, ExportableState)]
        self.state = PPOState(
            is_local_process_zero=args.local_process_index == 0, is_world_process_zero=is_main(),
            stateful_callbacks=stateful,  # type: ignore[arg-type]
        )  # fmt: skip
        self.call("on_init_end")

    def call(self, event: str, **given: Any) -> None:
        self.control = getattr(self.callback_handler, event)(self.args, self.state, self.control, **given)

    def begin(self, done: int) -> None:
        """Before the first of the iterations that are left, after `done` of them."""
        self.state.max_steps = self.ppo.iterations
        self.state.num_train_epochs = self._epochs(self.ppo.iterations)  # type: ignore[assignment]
        self.state.compute_steps(self.args.by_steps(len(self.ppo.prompts)), self.state.max_steps)
        self._count(done)
        self.began, self.episodes_before = time.perf_counter(), self.state.episode
        self.call("on_train_begin")

    def take_step(self) -> dict[str, float]:
        """One iteration of the engine, counted. Adds episodes a second (`eps`) to its metrics."""
        metrics = self.ppo.step()
        self._count(self.state.global_step + 1)
        seconds = time.perf_counter() - self.began
        return metrics | {"eps": (self.state.episode - self.episodes_before) / seconds}

    def log_is_due(self) -> bool:
        """Whether the config has this iteration logged; a callback may ask for others in `control`."""
        flows = [each for each in self.callback_handler.callbacks if isinstance(each, DefaultFlowCallback)]
        return any(flow.on_step_end(self.args, self.state, TrainerControl()).should_log for flow in flows)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep `logs` in the state's history and hand them to the callbacks.

        start_time: of `time.time()`, from which `train_runtime` (seconds) and its rates are added, as in transformers.
        """
        row = logs | {"epoch": self.state.epoch}
        if start_time is not None:
            steps = self.state.global_step
            row |= speed_metrics("train", start_time, num_samples=self.state.episode, num_steps=steps)
        self.state.log_history.append(row | {"step": self.state.global_step})
        self.call("on_log", logs=row)

    def add_callback(self, callback: Callback) -> None:
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback: Callback) -> TrainerCallback | None:
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback: Callback) -> None:
        self.callback_handler.remove_callback(callback)

    def _count(self, step: int) -> None:
        self.state.global_step, self.state.episode = step, step * self.ppo.config.batch_size
        self.state.epoch = self._epochs(step)

    def _epochs(self, iterations: int) -> float:
        """Passes over the prompts."""
        return iterations * self.ppo.config.batch_size / len(self.ppo.prompts)
