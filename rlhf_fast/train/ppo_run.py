"""A PPO run from its config: open the models, tokenise the prompts, train with progress, save the policy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.fitting import prompt_room
from rlhf_fast.data.prompts import Prompts
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.rendering import Rendering, compare
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.load import context_of, load_tokenizer, resolve_source
from rlhf_fast.model.lora_choice import describe_trained
from rlhf_fast.profiling.memory_page import MEMORY_PAGE, write_memory_page
from rlhf_fast.profiling.memory_profile import MEMORY_FILE, MemoryProfile, owners_of
from rlhf_fast.profiling.profile import PROFILE_FILE, profiled
from rlhf_fast.report.page import REPORT_FILE
from rlhf_fast.rewards.chosen import MODEL, GivenReward, choose_rewards, refuse_columns, with_retries
from rlhf_fast.rewards.classifier import AdapterReward, ClassifierReward
from rlhf_fast.rewards.source import RewardSource, WeightedRewards
from rlhf_fast.rollout.engine import refuse_unfitting
from rlhf_fast.rollout.sampling import end_with
from rlhf_fast.runtime.device import choose_device, choose_dtype, describe_device, describe_sizes, seed_everything
from rlhf_fast.runtime.distributed import is_main
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.identity import fingerprint, weights_fingerprint
from rlhf_fast.runtime.loop import Hooks, Run, finish, train
from rlhf_fast.runtime.memory import bytes_of
from rlhf_fast.runtime.output import alone
from rlhf_fast.runtime.phases import phase
from rlhf_fast.runtime.resume import choose_start
from rlhf_fast.runtime.shown import notices
from rlhf_fast.runtime.tracking import describe_memory
from rlhf_fast.train.config import PPORunConfig, difference_from_trl
from rlhf_fast.train.pages import write_ppo_page
from rlhf_fast.train.plan_run import plan_first, predict_beside
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.ppo_metrics import CollapseWatch
from rlhf_fast.train.roles import Roles, build_roles, is_adapter
from rlhf_fast.train.rollout_log import RolloutLog

MORE_ITERATIONS = "more total_episodes, or a smaller per_device_train_batch_size,"


@alone
def run_ppo(config: PPORunConfig, rewards: Sequence[GivenReward] = ()) -> Path:
    """Train with the rewards of the config and any `rewards` on top; returns the output folder.

    rewards: functions of (prompts, responses, **columns), reward sources, or pairs of either with its weight.
    Everything that the data or the config can get wrong raises `UsageError` before the first rollout.
    """
    if not config.dataset_name or not config.sft_model_path:
        raise UsageError("PPO needs sft_model_path (the SFT model) and dataset_name (the prompts).")
    outside = _outside_rewards(config, rewards)
    output = Path(str(config.output_dir))
    seed_everything(config.seed)
    tokenizer = load_tokenizer(config.sft_model_path, config.chat_template_path)
    prompts, left_out = read(config, tokenizer)
    prompts.rendering = _rendering(config, prompts)
    if config.auto:
        config = plan_first(config, prompts)
    refuse_columns(outside, prompts.columns)
    if notice := difference_from_trl(config):
        notices.info(notice)
    start = choose_start(config, _inputs(config, prompts, outside))
    if start.finished:
        return output
    measured = config.memory_profile and is_main()
    predicted = predict_beside(config, prompts) if measured else None
    with MemoryProfile(choose_device(config.use_cpu)) if measured else nullcontext() as memory:
        with phase("load"):
            roles = build_roles(config)
            refuse_unfitting(roles.policy.model, max(map(len, prompts.ids)) + config.response_length)
            ppo = _ppo_of(config, roles, outside, tokenizer, prompts)
        model, facts = roles.reference.model, describe(ppo, left_out)
        run = run_of(ppo, facts, partial(save_policy, ppo, roles, tokenizer), longer_by=MORE_ITERATIONS)
        if memory is not None:
            memory.attach(ppo)
            memory.predicted = predicted
            run.held = memory.now
        timed = config.profile and is_main()
        with profiled(model.dtype, model.device, trace=memory is None) if timed else nullcontext() as profile:
            checkpoints = train(run, start)
    pages: dict[str, Callable[[], object]] = {
        REPORT_FILE: lambda: write_ppo_page(output, facts | {"Memory": describe_memory(model.device)})
    }
    if profile is not None:
        pages[PROFILE_FILE] = partial(profile.write, output)
    if memory is not None:
        pages[MEMORY_FILE] = partial(memory.write, output)
        pages[MEMORY_PAGE] = partial(write_memory_page, output, memory.as_json(), profile)
        memory.print()
    finish(checkpoints, pages)
    return output


def _ppo_of(
    config: PPORunConfig, roles: Roles, outside: list[tuple[RewardSource, float]], tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
) -> PPO:  # fmt: skip
    """The run's state, with the reward model opened and beside it the rewards from `outside`."""
    asked = with_retries(outside, timeout=config.reward_timeout, retries=config.reward_retries)
    special = config.reward_special_tokens
    sources = WeightedRewards([*_model_reward(roles, config), *asked], special_tokens=special)
    rollouts = RolloutLog(Path(str(config.output_dir)), enabled=config.log_rollouts, special_tokens=special)
    return PPO(config, roles.policy, roles.reference, roles.critic, sources, tokenizer, prompts, rollouts=rollouts)


def run_of(
    ppo: PPO, facts: dict[str, str], save: Callable[[Path], None], *, longer_by: str = "", hooks: Hooks | None = None
) -> Run:
    """What the loop has to know of PPO. save: writes the policy into a folder; facts: what the run is, in words;
    longer_by: the fields that make more iterations, where it says that there are few."""
    ends = ppo.sampling.stop_ids or ppo.sampling.stop_strings
    watch = CollapseWatch(ppo.config.response_length if ends else None)

    def step(iteration: int) -> dict[str, float]:
        metrics = ppo.step()
        watch.look(metrics)
        return metrics

    def held() -> dict[str, int]:
        return {owner: bytes_of(own) for owner, own in owners_of(ppo).items()} | ppo.optimiser.held_bytes()

    return Run(
        name="PPO", config=ppo.config, steps=ppo.iterations, step=step, save=save, optimiser=ppo.optimiser,
        device=ppo.policy.model.device, facts=facts, longer_by=longer_by, held=held,
        progress={"objective/scores": "reward", "objective/kl": "KL", "rollout/response_length": "length"},
        saved={"ppo": ppo, "collapse": watch, "rollouts": ppo.rollouts}, can_undo=ppo.can_undo,
        contexts=[ppo.rollouts], hooks=hooks or Hooks(),
    )  # fmt: skip


def _outside_rewards(config: PPORunConfig, given: Sequence[GivenReward]) -> list[tuple[RewardSource, float]]:
    """All but the reward model. Raises `UsageError` without any reward, and for fields that would do nothing."""
    outside = choose_rewards(config.reward_funcs, config.reward_weights, given, timeout=config.reward_timeout)
    if not config.reward_model_path and not outside:
        raise UsageError("PPO needs a reward: set reward_model_path or reward_funcs, or pass a function from Python.")
    config.require(
        config.reward_timeout is None or bool(outside), "reward_timeout", "nothing where the reward is a model"
    )
    reads_text = bool(outside) or not is_adapter(str(config.reward_model_path))
    config.require(
        not config.reward_special_tokens or reads_text,
        "reward_special_tokens",
        "false where the only reward is an adapter, which reads token ids",
    )
    return outside


def read(config: PPORunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, int]:
    """The prompts, each short enough for max_length and the model's context beside its response, and how many rows are
    left out."""
    found = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    context = context_of(str(config.sft_model_path), generated=True)
    room = prompt_room(config.response_length, config.max_length, context)
    prompts = Prompts.encode(tokenizer, found.rows, room, source=str(config.dataset_name), on_bad_row=config.on_bad_row)
    return prompts, len(found.skipped) + len(found.rows) - len(prompts)


def describe(ppo: PPO, left_out: int = 0) -> dict[str, str]:
    """What the run is, in words, by topic; left_out: rows of the data that are not used."""
    c, model, prompts = ppo.config, ppo.policy.model, ppo.prompts
    responses, updates = ppo.iterations * c.batch_size, c.num_ppo_epochs * c.num_mini_batches
    critic = sum(parameter.numel() for _, parameter in ppo.critic.named_parameters() if parameter.requires_grad)
    return {
        "Data": f"{len(prompts):,} prompts of {sum(map(len, prompts.ids)):,} tokens"
        + (f", {left_out:,} more left out" if left_out else ""),
        "Steps": f"{responses:,} responses of at most {c.response_length:,} tokens, {responses / len(prompts):.3g} "
        f"to a prompt, are {ppo.iterations:,} iterations of {c.batch_size:,}, {updates:,} optimiser steps each",
        "Policy": describe_trained(model, ppo.policy.adapter, ppo.policy.named_parameters()),
        "Critic": f"a critic of {critic:,} trainable parameters",
        "Computed": describe_device(model.dtype, model.device),
        "Sizes": describe_sizes(
            c.max_tokens_per_micro_batch,
            recompute=bool(c.activation_checkpointing),
            attention=model.attention,
            responses=c.max_rollout_batch,
        ),
    }


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
        return [(AdapterReward(MODEL, roles.reward, MicroBatches.of(config)), 1.0)]
    if config.reward_model_path is None:
        return []
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device)
    return [(ClassifierReward.load(MODEL, config.reward_model_path, dtype=dtype, device=device), 1.0)]
