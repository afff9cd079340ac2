"""A PPO run from its config: open the models, tokenise the prompts, train with progress, save the policy."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.fitting import prompt_room
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.rendering import Rendering, compare
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.holdings import holdings
from rlhf_fast.model.load import context_of, load_tokenizer, resolve_source
from rlhf_fast.profiling.profile import profiled
from rlhf_fast.rewards.adapter import AdapterReward
from rlhf_fast.rewards.chosen import named_rewards, patient
from rlhf_fast.rewards.classifier import ClassifierReward
from rlhf_fast.rewards.function import FunctionReward
from rlhf_fast.rewards.source import RewardSource
from rlhf_fast.rewards.weighted import WeightedRewards
from rlhf_fast.rollout.cache_size import refuse_unfitting
from rlhf_fast.rollout.sampling import end_with
from rlhf_fast.runtime.device import choose_device, choose_dtype, seed_everything
from rlhf_fast.runtime.distributed import is_main, main_only
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.guard import guard
from rlhf_fast.runtime.identity import fingerprint, weights_fingerprint
from rlhf_fast.runtime.output import alone
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.saving import Checkpoints
from rlhf_fast.runtime.state import Stateful
from rlhf_fast.runtime.tracking import Tracker
from rlhf_fast.train.collapse import CollapseWatch
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.ppo_config import NOTICES, PPORunConfig, difference_from_trl
from rlhf_fast.train.prompts import Prompts
from rlhf_fast.train.roles import Roles, build_roles
from rlhf_fast.train.rollout_log import RolloutLog

SHOWN = {"objective/scores": "reward", "objective/kl": "KL", "rollout/response_length": "length"}


@alone
def run_ppo(config: PPORunConfig, rewards: Sequence[tuple[RewardSource, float]] = ()) -> Path:
    """Train with the rewards of the config and any `rewards` (source, weight) on top; returns the output folder.

    Everything that the data or the config can get wrong raises `UsageError` before the first rollout.
    """
    if not config.dataset_name or not config.sft_model_path:
        raise UsageError("PPO needs sft_model_path (the SFT model) and dataset_name (the prompts).")
    named = named_rewards(config.reward_funcs, config.reward_weights, timeout=config.reward_timeout)
    rewards = [*named, *rewards]
    if not config.reward_model_path and not rewards:
        raise UsageError("PPO needs a reward: set reward_model_path or reward_funcs, or pass a function from Python.")
    config.require(
        config.reward_timeout is None or bool(rewards), "reward_timeout", "nothing where the reward is a model"
    )
    output = Path(str(config.output_dir))
    seed_everything(config.seed)
    tokenizer = load_tokenizer(config.sft_model_path, config.chat_template_path)
    prompts = read(config, tokenizer)
    prompts.rendering = _rendering(config, prompts)
    for source, _ in rewards:
        if isinstance(source, FunctionReward):
            source.check_signature(prompts.columns)
    if notice := difference_from_trl(config):
        logging.getLogger(NOTICES).warning(notice)
    start = choose_start(config, _inputs(config, prompts, rewards))
    if start.finished:
        return output
    roles = build_roles(config)
    refuse_unfitting(roles.policy.model, max(map(len, prompts.ids)) + config.response_length)
    asked = patient(rewards, timeout=config.reward_timeout, retries=config.reward_retries)
    sources = WeightedRewards([*_model_reward(roles, config), *asked])
    rollouts = RolloutLog(output, enabled=config.log_rollouts)
    ppo = PPO(config, roles.policy, roles.reference, roles.critic, sources, tokenizer, prompts, rollouts=rollouts)
    watch = CollapseWatch()
    save = main_only(partial(save_policy, ppo, roles, tokenizer))
    parts: dict[str, Stateful] = {"ppo": ppo, "optimiser": ppo.optimiser, "collapse": watch, "rollouts": rollouts}
    checkpoints = Checkpoints(config, start, ppo.iterations, parts, save, undo=ppo.undoes)
    model, quiet = roles.reference.model, bool(config.disable_tqdm)
    with (
        profiled(output, model.dtype, model.device) if config.profile and is_main() else nullcontext(),
        Tracker(output, "PPO", ppo.iterations, SHOWN, done=checkpoints.done, quiet=quiet) as tracker,
        rollouts,
        guard(checkpoints, partial(holdings, [model, ppo.policy.model, *ppo.critic.models], ppo.optimiser)),
    ):
        for iteration in checkpoints.remaining():
            metrics = ppo.step()
            tracker.log(iteration, metrics)
            watch.look(metrics)
            checkpoints.after(iteration, metrics)
        ppo.optimiser.refuse_stuck()
    checkpoints.save_results()
    checkpoints.finish()
    return output


def read(config: PPORunConfig, tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The prompts, each short enough for max_length and the model's context beside its response."""
    rows = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row).rows
    room = prompt_room(config.response_length, config.max_length, context_of(str(config.sft_model_path)))
    return Prompts.encode(tokenizer, rows, room, source=str(config.dataset_name), on_bad_row=config.on_bad_row)


def save_policy(ppo: PPO, roles: Roles, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    if ppo.policy.adapter is None:
        end_with(ppo.policy.model.base, ppo.sampling.stop_ids)
        ppo.policy.model.base.save_pretrained(output)
    else:
        save_adapter(ppo.policy.model, ppo.policy.adapter, output, base=roles.base)
    tokenizer.save_pretrained(output)
    if ppo.prompts.rendering is not None:
        replace(ppo.prompts.rendering, stop_token_id=ppo.config.stop_token_id).save(output)
    facts = {"iterations": ppo.iteration, "episodes": ppo.iteration * ppo.config.batch_size, "seed": ppo.config.seed}
    (output / "ppo.json").write_text(json.dumps(facts, indent=2) + "\n")


def _rendering(config: PPORunConfig, prompts: Prompts) -> Rendering:
    """How the policy's prompts were rendered in all of its training, this one's included. Says where this one's are
    rendered otherwise than before, or than the reward model's were."""
    assert prompts.rendering is not None
    own = replace(prompts.rendering, stop_token_id=config.stop_token_id)
    compare(own, str(config.dataset_name), config.sft_model_path, config.reward_model_path)
    return own.after(Rendering.read(str(config.sft_model_path)))


def _inputs(config: PPORunConfig, prompts: Prompts, rewards: Sequence[tuple[RewardSource, float]]) -> dict[str, Any]:
    """What the result depends on beside the config."""
    sft = resolve_source(str(config.sft_model_path))
    return {
        "contents of the data": fingerprint((prompts.ids, prompts.texts, prompts.columns)),
        "contents of the models": weights_fingerprint((sft.base, sft.adapter, config.reward_model_path)),
        "rewards": [[source.name, weight] for source, weight in rewards],
    }


def _model_reward(roles: Roles, config: PPORunConfig) -> list[tuple[RewardSource, float]]:
    if roles.reward is not None:
        return [(AdapterReward("reward_model", roles.reward, config.max_tokens_per_micro_batch), 1.0)]
    if config.reward_model_path is None:
        return []
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device)
    return [(ClassifierReward.load("reward_model", config.reward_model_path, dtype=dtype, device=device), 1.0)]
