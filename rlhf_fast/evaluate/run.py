"""An evaluation from its config: open the models, compare, write `evaluation.json` and `report.html` (the summary, and
the responses side by side, escaped)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from html import escape
from pathlib import Path

from rlhf_fast.data.fitting import prompt_room
from rlhf_fast.data.prompts import Prompts
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.rendering import compare as compare_rendering
from rlhf_fast.data.rendering import trained_stop
from rlhf_fast.evaluate.compare import Comparison, Pair, RewardComparison, compare
from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.evaluate.models import Models, is_adapter, open_models, short_names
from rlhf_fast.report.charts import interval_bar
from rlhf_fast.report.page import REPORT_FILE, Report
from rlhf_fast.report.sections import number, prompt_block, response_block, share, share_span, span, training
from rlhf_fast.rewards.chosen import choose_rewards, refuse_columns, with_retries
from rlhf_fast.rewards.function import RewardFunction
from rlhf_fast.rewards.source import RewardSource
from rlhf_fast.rollout.sampling import Sampling, stop_ids, stop_strings
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, write_record
from rlhf_fast.runtime.output import refuse_unwritable
from rlhf_fast.runtime.shown import show_notices
from rlhf_fast.runtime.tracking import METRICS_FILE, activity, read_metrics

RESULT_FILE = "evaluation.json"
RETRIES = 2  # of a function or endpoint that fails, as PPO's default


def run_evaluate(config: EvaluateConfig, rewards: Sequence[RewardSource | RewardFunction] = ()) -> Comparison:
    """Compare by the rewards of the config and any `rewards` (functions, sources) after them, write both files to
    `output_dir`, return the comparison. Raises `UsageError`."""
    refuse_many("evaluate")
    show_notices()
    outside = _outside_rewards(config, rewards)
    if not config.model_path or not config.dataset_name or not (config.reward_model_paths or outside):
        raise UsageError(
            "an evaluation needs model_path (the policy), dataset_name (held-out prompts) and a reward: "
            "reward_model_paths (reward models), reward_funcs, or a function from Python."
        )
    refuse_unwritable("output_dir", config.output_dir)
    read = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row)
    device = choose_device(config.use_cpu)
    models = open_models(config, choose_dtype(config.dtype, device), device)
    prompts = Prompts.encode(
        models.tokenizer, read.rows[: config.max_prompts], _room(config, models),
        noun="held-out prompt", source=config.dataset_name, on_bad_row=config.on_bad_row,
    )  # fmt: skip
    _compare_rendering(config, prompts)
    refuse_columns(outside, prompts.columns)
    models.rewards += [source for source, _ in with_retries(outside, timeout=None, retries=RETRIES)]
    with activity(f"two responses to each of {len(prompts)} prompts, then their scores"):
        comparison = _compare(config, models, prompts)
    output = Path(config.output_dir)
    facts = asdict(comparison) | {"over_optimised_under": comparison.over_optimised_under}
    with disk_errors(f"write {str(output / RESULT_FILE)!r}", "What was in that folder is as it was."):
        output.mkdir(parents=True, exist_ok=True)
        write_record(output / RESULT_FILE, facts)
    with disk_errors(f"write {str(output / REPORT_FILE)!r}", f"{output / RESULT_FILE} is whole and holds the results."):
        build_report(comparison, config.model_path).write(output / REPORT_FILE)
    return comparison


def _outside_rewards(
    config: EvaluateConfig, given: Sequence[RewardSource | RewardFunction]
) -> list[tuple[RewardSource, float]]:
    """All but the reward models. Raises `UsageError` for weights, which mean nothing here, and a dead field."""
    if weighted := [reward for reward in given if isinstance(reward, tuple)]:
        raise UsageError(f"{weighted[0]!r} has a weight; expected rewards without, as each is compared by itself.")
    paths = config.reward_model_paths
    outside = choose_rewards(config.reward_funcs, None, given, timeout=None, taken=short_names(paths))
    config.require(
        not config.reward_special_tokens or bool(outside) or not all(map(is_adapter, paths)),
        "reward_special_tokens",
        "false where the only rewards are adapters, which read token ids",
    )
    return outside


def build_report(comparison: Comparison, model_path: str) -> Report:
    """The page of an evaluation; with training curves where the model's folder has its metrics."""
    title = f"{comparison.second_name} against {comparison.first_name}"
    report = Report(title, f"{len(comparison.pairs)} held-out prompts, one response of each policy to each.")
    report.add("Summary", summary(comparison))
    if (Path(model_path) / METRICS_FILE).is_file():
        report.add("Training", training(read_metrics(model_path)))
    report.add("Side by side", examples(comparison))
    return report


def _compare(config: EvaluateConfig, models: Models, prompts: Prompts) -> Comparison:
    stop = stop_ids(
        models.tokenizer, stop_token_id=trained_stop(str(config.model_path)), model_eos=models.policy.model.eos_ids
    )
    strings = stop_strings(models.tokenizer, config.stop)
    return compare(
        models.baseline, models.policy, prompts, models.rewards, models.tokenizer,
        Sampling(config.response_length, stop, config.temperature, stop_strings=strings), names=models.names,
        seed=config.seed, max_batch=config.max_rollout_batch, max_tokens=config.max_tokens_per_micro_batch,
        max_kv_cache_gb=config.max_kv_cache_gb, special_tokens=config.reward_special_tokens,
    )  # fmt: skip


def _compare_rendering(config: EvaluateConfig, prompts: Prompts) -> None:
    """Say of each model where its training's prompts were rendered otherwise than these."""
    assert prompts.rendering is not None
    own = replace(prompts.rendering, stop_token_id=trained_stop(str(config.model_path)))
    paths = (config.model_path, config.baseline_path, *config.reward_model_paths)
    compare_rendering(own, str(config.dataset_name), *paths)


def _room(config: EvaluateConfig, models: Models) -> int | None:
    """Tokens that a prompt may have beside a response, in the smaller of the two contexts."""
    contexts = [policy.model.generation_length for policy in (models.baseline, models.policy)]
    return prompt_room(config.response_length, *contexts)


SHOWN_PAIRS = 12


def summary(comparison: Comparison) -> str:
    """Rewards with win rates, then behaviour; and a warning where the first reward rose and another fell."""
    first, second = escape(comparison.first_name), escape(comparison.second_name)
    hidden = '<span class="hidden">Interval</span>'
    rewards = "".join(_reward_row(reward, len(comparison.pairs)) for reward in comparison.rewards)
    kl = "not defined for greedy responses" if comparison.kl is None else f"{number(comparison.kl)} nats a response"
    columns = f'<th class="n">{first}<th class="n">{second}'
    return (
        f"{_warning(comparison)}"
        f'<div class="scroll"><table><thead><tr><th>Reward{columns}<th class="n">Difference'
        f'<th class="n">{second} wins<th>{hidden}</tr></thead><tbody>{rewards}</tbody></table></div>'
        '<p class="note">Mean scores; paired difference and win rate with 95&nbsp;% intervals; ties count half. '
        "The dotted mark is one half.</p>"
        f'<div class="scroll"><table class="narrow"><thead><tr><th>Responses{columns}</tr></thead>'
        f"<tbody>{_behaviour_rows(comparison)}</tbody></table></div>"
        f'<p class="note">KL of {second} to {first}: {kl}.</p>'
    )


def examples(comparison: Comparison, shown: int = SHOWN_PAIRS) -> str:
    """Both responses to each prompt, in the order of the data: the first `shown` open, the others folded away."""
    pairs = [_side_by_side(pair, comparison.first_name, comparison.second_name) for pair in comparison.pairs]
    rest = pairs[shown:]
    folded = f"<details><summary>The other {len(rest)} prompts</summary>{''.join(rest)}</details>" if rest else ""
    return f'<p class="note">In the order of the data, not chosen by score.</p>{"".join(pairs[:shown])}{folded}'


def _reward_row(reward: RewardComparison, prompts: int) -> str:
    judged = reward.win_rate.count
    part = f"<br><small>judges {judged} of {prompts} prompts</small>" if judged < prompts else ""
    sign = "+" if reward.difference.value > 0 else ""
    bar = interval_bar(reward.win_rate, f"win rate {100 * reward.win_rate.value:.1f} %")
    return (
        f'<tr><th scope="row">{escape(reward.name)}{part}<td class="n">{number(reward.first_mean)}'
        f'<td class="n">{number(reward.second_mean)}'
        f'<td class="n"><b>{sign}{number(reward.difference.value)}</b><br><small>{span(reward.difference)}</small>'
        f'<td class="n"><b>{share(reward.win_rate.value)}</b><br><small>{share_span(reward.win_rate)}</small>'
        f"<td>{bar}</tr>"
    )


def _behaviour_rows(comparison: Comparison) -> str:
    first, second = comparison.first, comparison.second
    rows = (
        ("Mean length, tokens", number(first.mean_length), number(second.mean_length)),
        ("Cut off by the budget", share(first.truncated_fraction), share(second.truncated_fraction)),
        ("Distinct 2-grams", share(first.distinct_2), share(second.distinct_2)),
        ("Repeated 3-grams", share(first.repetition), share(second.repetition)),
    )
    return "".join(f'<tr><th scope="row">{name}<td class="n">{a}<td class="n">{b}</tr>' for name, a, b in rows)


def _warning(comparison: Comparison) -> str:
    fell = comparison.over_optimised_under
    if not fell:
        return ""
    return (
        f'<p class="warning"><b>Over-optimised:</b> {escape(comparison.rewards[0].name)} rose while '
        f"{escape(', '.join(fell))} fell. Train for fewer episodes, or raise kl_coef.</p>"
    )


def _side_by_side(pair: Pair, first_name: str, second_name: str) -> str:
    return (
        f'<article>{prompt_block(pair.prompt)}<div class="pair">'
        f"{response_block(first_name, pair.first, pair.first_scores)}"
        f"{response_block(second_name, pair.second, pair.second_scores, 'second')}</div></article>"
    )
