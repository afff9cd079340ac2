"""What a script hands over to the trainer, checked and read before anything is changed; `Prompts` from its datasets:
token ids, plain text, or conversations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from peft import PeftModel
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.data.columns import gather
from rlhf_fast.data.fitting import prompt_room
from rlhf_fast.data.prompts import Prompts
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.model.shared import context_length, generation_length
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.shown import notices
from rlhf_fast.trainer.config import PPOConfig

Dataset = Iterable[Any]


def check_models(args: object, model: Any, ref_model: Any, reward_model: Any, value_model: Any) -> None:
    """Raise `UsageError` for a config or a model of another kind, and for one object in two roles."""
    if not isinstance(args, PPOConfig):
        raise UsageError(
            f"args is a {type(args).__module__}.{type(args).__name__}; expected rlhf_fast.PPOConfig, which has "
            "TRL's fields. Import PPOConfig and PPOTrainer from rlhf_fast."
        )
    if not isinstance(model, (PreTrainedModel, PeftModel)):
        raise UsageError(f"model is {type(model).__name__}; expected a model of transformers, or a PeftModel.")
    if ref_model is model:
        raise UsageError("model and ref_model are one object; pass ref_model=None, which keeps a frozen reference.")
    for name, other in (("model", model), ("ref_model", ref_model), ("reward_model", reward_model)):
        if value_model is not None and value_model is other:
            raise UsageError(f"value_model and {name} are one object, which training would change. Pass a copy.")


def read_datasets(
    args: PPOConfig, tokenizer: PreTrainedTokenizerBase, models: Iterable[Any], train: Dataset | None,
    held_out: Dataset | Mapping[str, Dataset] | None, collator: Collator | None,
) -> tuple[Prompts, dict[str, Prompts]]:  # fmt: skip
    """The prompts to train on, and the held-out ones by the prefix of their metrics.

    `models` read prompt and response: the first is the policy, the others may be None or no models.
    """
    if train is None:
        raise UsageError("train_dataset is None; expected the prompts to train on.")
    if held_out is None and args.eval_strategy != "no":
        raise UsageError("eval_strategy=steps evaluates on eval_dataset, which is None. Pass one, or eval_strategy=no.")
    policy, *others = models
    contexts = [context_length(m.config) for m in others if isinstance(m, (PreTrainedModel, PeftModel))]
    room = prompt_room(args.response_length, args.max_length, generation_length(policy.config), *contexts)
    vocabulary = policy.get_input_embeddings().weight.shape[0]

    def read(name: str, dataset: Dataset) -> Prompts:
        return read_dataset(
            dataset, tokenizer, args, name=name, room=room, vocabulary=vocabulary, collator=collator
        )  # fmt: skip

    return read("train_dataset", train), {
        prefix: read("eval_dataset", dataset) for prefix, dataset in _by_prefix(held_out).items()
    }


def _by_prefix(datasets: Dataset | Mapping[str, Dataset] | None) -> dict[str, Dataset]:
    if isinstance(datasets, Mapping):
        return {f"eval_{name}": dataset for name, dataset in datasets.items()}
    return {} if datasets is None else {"eval": datasets}


Collator = Callable[[list[dict[str, Any]]], Any]


def read_dataset(
    dataset: Iterable[Any], tokenizer: PreTrainedTokenizerBase, args: PPOConfig, *,
    name: str, room: int | None, vocabulary: int, collator: Collator | None,
) -> Prompts:  # fmt: skip
    """Prompts of at most `room` tokens with ids below `vocabulary`. Raises `UsageError` naming the row.

    Rows with `input_ids` are taken as they are, without padding: what `attention_mask` masks, else pad tokens. A
    `collator` other than transformers' padding one is asked for each row's ids first. Other rows are read as
    `rlhf_fast.data` reads them, and tokenised.
    """
    rows = list(dataset)
    if not rows:
        raise UsageError(f"{name} is empty; expected at least one prompt.")
    if collator is not None and not isinstance(collator, DataCollatorWithPadding):
        rows = [row | _collated(collator, row) for row in rows]
    if "input_ids" in rows[0]:
        prompts = _of_ids(rows, tokenizer, room, name)
    else:
        read = read_prompts(rows, on_bad_row=args.on_bad_row).rows
        prompts = Prompts.encode(tokenizer, read, room, source=name, on_bad_row=args.on_bad_row)
    _check_ids(prompts, vocabulary, name)
    return prompts


def _of_ids(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, room: int | None, name: str) -> Prompts:
    ids = _unpadded(rows, tokenizer, name)
    for index, prompt in enumerate(ids, 1):
        if not prompt:
            raise UsageError(f"row {index} of {name} has no token; a response needs one to follow. Remove the row.")
    for index, prompt in enumerate(ids, 1):
        if room is not None and len(prompt) > room:
            raise UsageError(
                f"row {index} of {name} has {len(prompt)} tokens and {room} fit beside the response. Shorten it, raise "
                "max_length (up to the model's context), or lower response_length."
            )
    others = gather(rows)
    columns = {name: others[name] for name in others.keys() - {"input_ids", "attention_mask", "labels"}}
    return Prompts(ids, tokenizer.batch_decode(ids), columns)


def _unpadded(rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, name: str) -> list[list[int]]:
    """Token ids where a row's attention mask is 1; without one, without pad tokens at the side where the tokenizer
    pads, which a line says.

    At the other side too, where the pad token means nothing else (as EOS or BOS it may belong to the prompt).
    """
    pad = tokenizer.pad_token_id
    only_pads = pad not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    left, right = only_pads or tokenizer.padding_side == "left", only_pads or tokenizer.padding_side == "right"
    kept, padded = [], 0
    for row in rows:
        ids, mask = list(map(int, row["input_ids"])), row.get("attention_mask")
        if mask is not None:
            kept.append([token for token, seen in zip(ids, mask, strict=True) if seen])
            continue
        kept.append(_stripped(ids, pad, left=left, right=right))
        padded += len(kept[-1]) < len(ids)
    if padded:
        notices.warning(
            "%d of the %d prompts of %s began or ended with the pad token %r (id %d), which was left out as padding; "
            "give them their attention_mask to say what is text.", padded, len(rows), name, tokenizer.pad_token, pad,
        )  # fmt: skip
    return kept


def _stripped(ids: list[int], pad: int | None, *, left: bool, right: bool) -> list[int]:
    start, end = 0, len(ids)
    while left and start < end and ids[start] == pad:
        start += 1
    while right and start < end and ids[end - 1] == pad:
        end -= 1
    return ids[start:end]


def _collated(collator: Collator, row: dict[str, Any]) -> dict[str, Any]:
    batch = collator([row])
    return {key: batch[key][0].tolist() for key in ("input_ids", "attention_mask") if key in batch}


def _check_ids(prompts: Prompts, vocabulary: int, name: str) -> None:
    """A token added to the tokenizer without resizing the embeddings may be the pad token, which is never fed."""
    for index, ids in enumerate(prompts.ids, 1):
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise UsageError(
                f"row {index} of {name} has token id {max(ids)} and the model's embeddings have {vocabulary} rows. "
                "Tokenise with the model's own tokenizer, give padded rows their attention_mask, or resize the "
                "embeddings."
            )
