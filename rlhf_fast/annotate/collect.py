"""Items from models: the rollouts of a run, or responses that are generated now; and which of them to ask first.

run_items        pairs (or more) of a PPO run's responses to the same prompt
generated_items  several responses of a model to each prompt
priorities       how much a vote on an item would tell a reward model: the smaller its margin, or the more two reward
                 models disagree, the more
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from rlhf_fast.annotate.items import Item, make_item
from rlhf_fast.data.encode import encode_prompt, encode_replies, prompt_text
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.schema import Prompt, PromptRow, Tools, prompt_key
from rlhf_fast.generate.config import GenerateConfig
from rlhf_fast.generate.run import run_generate
from rlhf_fast.model.adapter_files import refuse_headless
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.load import load_shared, load_tokenizer, refuse_missing, resolve_source
from rlhf_fast.model.roles import adapter_critic
from rlhf_fast.rewards.classifier import AdapterReward, ClassifierReward
from rlhf_fast.rewards.source import RewardBatch, RewardSource, checked
from rlhf_fast.runtime.checkpoint import FACTS, list_checkpoints, read_facts
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.resume import FINISHED
from rlhf_fast.runtime.shown import notices
from rlhf_fast.train.roles import is_adapter
from rlhf_fast.train.rollout_log import ROLLOUTS_FILE

Mode = Literal["random", "margin", "disagreement"]
BANDS = 4
"""Into which a run's iterations are divided: the sources of a leaderboard."""
MOST_PAIRED = 16
"""Latest responses to a prompt of which every pair is looked at."""


@dataclass(frozen=True)
class Rollout:
    """A response of a run. scores: by reward, as the run's metrics name them."""

    iteration: int
    seed: int
    response: str
    scores: dict[str, float | None]


@dataclass(frozen=True)
class Group:
    """A prompt as the run's data has it, and the different responses to it, the latest of equal ones."""

    prompt: Prompt
    tools: Tools | None
    rollouts: list[Rollout]


def run_items(
    run: str | Path, *, prompts: str | None = None, format: str | None = None, responses: int = 2,
    limit: int | None = None, seed: int = 0, every_pair: bool = False,
) -> list[Item]:  # fmt: skip
    """Items of the responses in a run's rollouts.jsonl. prompts: the data that the run had, where it is not where its
    records say. responses: of an item, drawn at random, one item a prompt at a time until there are `limit`.
    every_pair: all pairs of a prompt's latest responses instead, among which `priorities` is to choose.

    Raises `UsageError` where there are no two different responses to a prompt, or a prompt is not in the data.
    """
    run = Path(run).expanduser()
    groups = [group for group in read_rollouts(run, prompts, format) if len(group.rollouts) >= 2]
    if not groups:
        raise UsageError(
            f"{str(run / ROLLOUTS_FILE)!r} holds no prompt with two different responses, so there is nothing to "
            "compare. Train for longer, or generate some (--model)."
        )
    last = max(rollout.iteration for group in groups for rollout in group.rollouts)
    chosen = _every_pair(groups) if every_pair else _drawn(groups, responses, random.Random(f"items {seed}"))
    chosen = chosen[:limit] if limit is not None and not every_pair else chosen
    return [_item(group, rollouts, run, last) for group, rollouts in chosen]


def read_rollouts(run: Path, prompts: str | None = None, format: str | None = None) -> list[Group]:
    """The rollouts by prompt, in the order in which prompts first stand there."""
    told = _told(run)
    source = prompts or told.get("dataset_name")
    if source is None:
        raise UsageError(f"{str(run)!r} does not say which prompts it had; give them with --prompts.")
    tokenizer = load_tokenizer(_model_of(run, told), None if _has_tokenizer(run) else told.get("chat_template_path"))
    rows = read_prompts(source, format=format or told.get("dataset_format"), on_bad_row="skip").rows
    by_text: dict[str, PromptRow] = {}
    for row in rows:
        try:
            ids = encode_prompt(tokenizer, row.prompt, tools=row.tools)
        except UsageError:
            continue  # the run has not seen it either; one that it has seen is missed below
        by_text.setdefault(str(tokenizer.decode(ids)), row)
    special = bool(told.get("reward_special_tokens"))
    groups: dict[str, dict[str, Rollout]] = {}
    for line in _lines(run / ROLLOUTS_FILE):
        if line["prompt"] not in by_text:
            raise UsageError(
                f"the prompt {line['prompt'][:80]!r} of {ROLLOUTS_FILE} is not in {source!r} as the run's model reads "
                "it. Give the data that the run had with --prompts."
            )
        text = line["response"]
        if special:  # which its rewards read, and a person need not
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if text.strip():
            rollout = Rollout(int(line["iteration"]), int(line["seed"]), text, dict(line.get("scores") or {}))
            groups.setdefault(line["prompt"], {})[text] = rollout
    return [Group(by_text[text].prompt, by_text[text].tools, list(found.values())) for text, found in groups.items()]


def _told(run: Path) -> dict[str, Any]:
    """What the run was told: from the record of a finished one, else from its newest checkpoint; empty without."""
    try:
        if (run / FINISHED).is_file():
            return dict(json.loads((run / FINISHED).read_text(encoding="utf-8")))
        newest = next(iter(list_checkpoints(run)), None)
        return {} if newest is None else dict(read_facts(newest)["run"]["identity"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot read what the run {str(run)!r} was told ({FINISHED}, {FACTS}): {error}.") from error


def _has_tokenizer(run: Path) -> bool:
    return (run / "tokenizer_config.json").is_file()


def _model_of(run: Path, told: Mapping[str, Any]) -> str:
    if _has_tokenizer(run):
        return str(run)
    newest = next(iter(list_checkpoints(run)), None)
    if newest is None and not told.get("sft_model_path"):
        raise UsageError(f"{str(run)!r} holds no tokenizer; expected the output_dir of a PPO run.")
    return str(newest or told["sft_model_path"])


def _lines(path: Path) -> list[dict[str, Any]]:
    """Of a log that may still grow: the piece of a line at its end is left."""
    try:
        whole = path.read_bytes().rpartition(b"\n")[0]
    except OSError as error:
        raise UsageError(
            f"cannot read {str(path)!r}: {error.strerror}. Expected the output_dir of a PPO run with log_rollouts."
        ) from error
    try:
        rows = [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise UsageError(f"{str(path)!r} holds a line that is not JSON: {error}.") from error
    missing = {"iteration", "seed", "prompt", "response"}
    if any(not isinstance(row, dict) or missing - row.keys() for row in rows):
        raise UsageError(f"{str(path)!r} holds a row without {', '.join(sorted(missing))}; expected a PPO run's log.")
    return rows


def _drawn(groups: Sequence[Group], responses: int, draw: random.Random) -> list[tuple[Group, list[Rollout]]]:
    """Prompts in a random order, each with some of its responses; then again with others, until those are used up."""
    order = list(groups)
    draw.shuffle(order)
    left = {id(group): draw.sample(group.rollouts, len(group.rollouts)) for group in order}
    chosen = []
    while order:
        for group in order:
            own = left[id(group)]
            chosen.append((group, own[:responses]))
            left[id(group)] = own[responses:]
        order = [group for group in order if len(left[id(group)]) >= 2]
    return chosen


def _every_pair(groups: Sequence[Group]) -> list[tuple[Group, list[Rollout]]]:
    return [(group, list(pair)) for group in groups for pair in combinations(group.rollouts[-MOST_PAIRED:], 2)]


def _item(group: Group, rollouts: Sequence[Rollout], run: Path, last: int) -> Item:
    sources = [
        {
            "model": run.name, "checkpoint": _band(rollout.iteration, last), "iteration": rollout.iteration,
            "seed": rollout.seed, "scores": rollout.scores,
        }
        for rollout in rollouts
    ]  # fmt: skip
    texts = [rollout.response for rollout in rollouts]
    return make_item(group.prompt, texts, sources, meta={"run": str(run)}, tools=group.tools)


def _band(iteration: int, last: int) -> str:
    """The quarter of the run in which an iteration is, in words."""
    width = -(-last // BANDS)
    first = (iteration - 1) // width * width + 1
    return f"iterations {first}-{min(last, first + width - 1)}"


def generated_items(config: GenerateConfig) -> list[Item]:
    """`num_responses` responses of a model to each prompt, equal ones once; prompts with one answer only are left out,
    which is said."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "responses.jsonl"
        run_generate(GenerateConfig(**{**vars(config), "output_file": str(file)}))
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    tools = {}
    if config.dataset_name:
        read = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row="skip")
        tools = {prompt_key(row.prompt): row.tools for row in read.rows}
    items, copies = [], config.num_responses
    for start in range(0, len(lines), copies):
        found: dict[str, int] = {}
        for number, line in enumerate(lines[start : start + copies], start):
            if line["response"].strip():
                found.setdefault(line["response"], number)
        if len(found) < 2:
            continue
        prompt = lines[start]["prompt"]
        name = Path(str(config.model_path)).name
        sources = [
            {"model": name, "path": str(config.model_path), "seed": (config.seed << 32) + number,
             "temperature": config.temperature, "finished": lines[number]["finished"]}
            for number in found.values()
        ]  # fmt: skip
        items.append(make_item(prompt, list(found), sources, tools=tools.get(prompt_key(prompt))))
    left_out = len(lines) // copies - len(items)
    if not items:
        raise UsageError(
            "every prompt got the same response each time, so there is nothing to compare. Raise --temperature or "
            "--candidates."
        )
    if left_out:
        notices.warning("%d of %d prompts got one response only and are left out", left_out, left_out + len(items))
    return items


# Which to ask first


def open_rewards(
    paths: Sequence[str], *, dtype: str = "auto", use_cpu: bool = False, max_tokens: int = 2048
) -> list[RewardSource]:
    """Reward models, each on a base of its own. Raises `UsageError`."""
    device = choose_device(use_cpu)
    precision, sources = choose_dtype(dtype, device), list[RewardSource]()
    for path in paths:
        refuse_missing(resolve_source(path).base)
        if is_adapter(path):
            shared, adapter = load_shared(path, dtype=precision, device=device, adapter="reward")
            assert adapter is not None
            refuse_headless(shared, adapter, path)
            sources.append(AdapterReward(path, adapter_critic(shared, adapter), MicroBatches(max_tokens)))
        else:
            sources.append(ClassifierReward.load(path, path, dtype=precision, device=device))
    return sources


def score_items(items: Sequence[Item], paths: Sequence[str], rewards: Sequence[RewardSource]) -> list[list[float]]:
    """For each reward its scores of all items' responses, in order, divided by their standard deviation. An adapter
    reads the ids that its training would; a response is scored with the EOS that ends it."""
    found, unique = [], {key: item for item in items for key in _keys(item)}  # a response may be in many items
    for path, reward in zip(paths, rewards, strict=True):
        tokenizer, sequences, texts = load_tokenizer(path), list[list[int]](), list[str]()
        for (_, response), item in unique.items():
            prompt, (reply,) = encode_replies(tokenizer, item.prompt, [response], tools=item.tools)
            sequences.append(prompt + reply)
            texts.append(prompt_text(tokenizer, item.prompt, item.tools))
        batch = RewardBatch(
            prompts=texts, responses=[response for _, response in unique], sequences=sequences,
            conversations=[None if isinstance(item.prompt, str) else item.prompt for item in unique.values()],
            finished=[True] * len(texts), tools=[item.tools for item in unique.values()],
        )  # fmt: skip
        scores = checked(reward, batch)
        by_key = dict(zip(unique, (scores / (float(scores.std(correction=0)) or 1.0)).tolist(), strict=True))
        found.append([by_key[key] for item in items for key in _keys(item)])
    return found


def _keys(item: Item) -> list[tuple[str, str]]:
    """What its responses are known by."""
    return [(prompt_key(item.prompt), response) for response in item.responses]


def logged_scores(items: Sequence[Item]) -> list[list[float]]:
    """The scores that the run logged, of its first reward that scored them all."""
    scores = [source.get("scores") or {} for item in items for source in item.sources]
    names = [name for name in (scores[0] if scores else {}) if all(one.get(name) is not None for one in scores)]
    if not names:
        raise UsageError("the run logged no reward that scored every response; name a reward model (--reward_models).")
    values = torch.tensor([float(one[names[0]]) for one in scores])
    return [(values / (float(values.std(correction=0)) or 1.0)).tolist()]


def priorities(items: Sequence[Item], scores: Sequence[Sequence[float]], mode: Mode) -> dict[str, float]:
    """By item id, the higher the sooner. margin: minus the least margin between two responses by the first reward, in
    its standard deviations. disagreement: the most that two rewards differ in P(one response beats another)."""
    found, at = {}, 0
    for item in items:
        own = [list(one[at : at + len(item.responses)]) for one in scores]
        at += len(item.responses)
        pairs = list(combinations(range(len(item.responses)), 2))
        if mode == "margin":
            found[item.id] = -min(abs(own[0][i] - own[0][j]) for i, j in pairs)
        else:
            chances = [[_sigmoid(one[i] - one[j]) for i, j in pairs] for one in own]
            found[item.id] = max(max(p) - min(p) for p in zip(*chances, strict=True))
    return found


def _sigmoid(value: float) -> float:
    return float(torch.sigmoid(torch.tensor(value, dtype=torch.float64)))


def first(items: Sequence[Item], ranked: Mapping[str, float], limit: int | None) -> list[Item]:
    """The `limit` items of the highest priority, and among these no response in two items, so that votes are not spent
    on the same text again and again."""
    taken: set[tuple[str, str]] = set()
    chosen = []
    for item in sorted(items, key=lambda item: -ranked[item.id]):
        own = set(_keys(item))
        if not own & taken:
            taken |= own
            chosen.append(item)
    return chosen[:limit]
