"""A PPO run from its config: open the models, tokenise the prompts, train with progress, save the policy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_prompt, prompt_text
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.schema import PromptRow
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.load import load_tokenizer
from rlhf_fast.rewards.adapter import AdapterReward
from rlhf_fast.rewards.classifier import ClassifierReward
from rlhf_fast.rewards.source import RewardSource
from rlhf_fast.rewards.weighted import WeightedRewards
from rlhf_fast.runtime.device import choose_device, choose_dtype, seed_everything
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.tracking import Tracker
from rlhf_fast.train.collapse import CollapseWatch
from rlhf_fast.train.ppo import PPO
from rlhf_fast.train.ppo_config import PPOConfig
from rlhf_fast.train.prompts import Prompts
from rlhf_fast.train.roles import Roles, build_roles

SHOWN = {"objective/scores": "reward", "objective/kl": "KL", "rollout/response_length": "length"}


def run_ppo(config: PPOConfig, rewards: Sequence[tuple[RewardSource, float]] = ()) -> Path:
    """Train with the reward model of the config and any `rewards` (source, weight) on top; returns "
    "the output folder."""
    if not config.dataset_name or not config.sft_model_path:
        raise UsageError("PPO needs sft_model_path (the SFT model) and dataset_name (the prompts).")
    seed_everything(config.seed)
    tokenizer = load_tokenizer(config.sft_model_path, config.chat_template_path)
    read = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    prompts = encode_prompts(tokenizer, read.rows, config)
    roles = build_roles(config)
    sources = [*_model_reward(roles, config), *rewards]
    if not sources:
        raise UsageError("PPO needs a reward: set reward_model_path, or pass a reward function from Python.")
    ppo = PPO(config, roles.policy, roles.reference, roles.critic, WeightedRewards(sources), tokenizer, prompts)
    output = Path(str(config.output_dir))
    watch = CollapseWatch()
    with Tracker(output, "PPO", ppo.iterations, SHOWN, quiet=bool(config.disable_tqdm)) as tracker:
        for iteration in range(ppo.iterations):
            metrics = ppo.step()
            tracker.log(iteration + 1, metrics)
            watch.look(metrics)
    save_policy(ppo, roles, tokenizer, output)
    return output


def encode_prompts(tokenizer: PreTrainedTokenizerBase, rows: list[PromptRow], config: PPOConfig) -> Prompts:
    """Tokenise and check every prompt before anything else costs time."""
    limit = config.max_length - config.response_length
    ids, texts, kept = [], [], []
    for number, row in enumerate(rows, 1):
        try:
            ids.append(encode_prompt(tokenizer, row.prompt, max_length=limit))
        except UsageError as error:
            if config.on_bad_row == "raise":
                raise UsageError(f"prompt {number} of {config.dataset_name}: {error}") from error
            continue
        texts.append(prompt_text(tokenizer, row.prompt))
        kept.append(row)
    if not kept:
        raise UsageError(f"no prompt of {config.dataset_name} fits {limit} tokens; raise max_length.")
    names = set.intersection(*(set(row.columns) for row in kept))
    return Prompts(ids, texts, {name: [row.columns[name] for row in kept] for name in sorted(names)})


def save_policy(ppo: PPO, roles: Roles, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    if ppo.policy.adapter is None:
        ppo.policy.model.base.save_pretrained(output)
    else:
        save_adapter(ppo.policy.model, ppo.policy.adapter, output, base=roles.base)
    tokenizer.save_pretrained(output)
    facts = {"iterations": ppo.iteration, "episodes": ppo.iteration * ppo.config.batch_size, "seed": ppo.config.seed}
    (output / "ppo.json").write_text(json.dumps(facts, indent=2) + "\n")


def _model_reward(roles: Roles, config: PPOConfig) -> list[tuple[RewardSource, float]]:
    if roles.reward is not None:
        return [(AdapterReward("reward_model", roles.reward, config.max_tokens_per_micro_batch), 1.0)]
    if config.reward_model_path is None:
        return []
    device = choose_device(config.use_cpu)
    dtype = choose_dtype(config.dtype, device)
    return [(ClassifierReward.load("reward_model", config.reward_model_path, dtype=dtype, device=device), 1.0)]
