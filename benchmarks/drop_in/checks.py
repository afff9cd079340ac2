"""What the scripts assert, the same on both sides: something was trained, and what was saved opens and speaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The parcel is"


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters, float32."""
    return {name: parameter.detach().float().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, Tensor], model: nn.Module) -> set[str]:
    """Names of the parameters whose values differ from `before`."""
    now = weights(model)
    assert now.keys() == before.keys(), sorted(now.keys() ^ before.keys())[:3]
    return {name for name, value in now.items() if not torch.equal(value, before[name].to(value.device))}


def says(model: Any, tokenizer: Any) -> list[int]:
    """The four tokens that `model` itself generates greedily after a prompt; asserts that they come."""
    ids = tokenizer(PROMPT, return_tensors="pt").to(model.device)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    out = model.generate(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], **options)
    found = out[0, ids["input_ids"].shape[1] :].tolist()
    assert len(found) == 4, found
    return found


def opens(folder: str | Path, base: str | Path) -> nn.Module:
    """The policy in `folder`, an adapter on `base` or a whole model, opened by PEFT's and transformers' own means.

    Asserts that no weight is missing or left over, that it differs from `base`, and that it generates.
    """
    folder = Path(folder)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if (folder / "adapter_config.json").exists():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
        says(model, AutoTokenizer.from_pretrained(base))
        model = model.merge_and_unload()
    else:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        model, info = loaded
        assert not info["missing_keys"] and not info["unexpected_keys"], info
        says(model, AutoTokenizer.from_pretrained(folder))
    assert changed(weights(plain), model), f"{folder} holds what {base} holds"
    return model


def logged(trainer: Any, *names: str) -> None:
    """Assert that the last row of the trainer's history has numbers by these names."""
    row = next(row for row in reversed(trainer.state.log_history) if "objective/scores" in row)
    for name in ("objective/kl", "objective/scores", "loss/policy_avg", "loss/value_avg", "lr", "episode", *names):
        assert isinstance(row[name], (int, float)) and row[name] == row[name], (name, row.get(name))
