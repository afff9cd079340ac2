"""What a script hands over to the trainer, checked and read before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_fast.data.fitting import prompt_room
from rlhf_fast.model.shared import context_length, generation_length
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.train.prompts import Prompts
from rlhf_fast.trainer.config import PPOConfig
from rlhf_fast.trainer.prompts import Collator, read_dataset

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
