"""Code that comes with a model is never run, nor is anybody asked whether it may."""

from __future__ import annotations

import builtins
import json

import pytest
import torch

from rlhf_fast import GenerateConfig, UsageError, run_generate
from rlhf_fast.model.load import context_of, load_causal_lm, load_tokenizer
from rlhf_fast.rewards.classifier import ClassifierReward
from tests.model_cases import tiny_model
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder whose config and tokenizer name code of their own, which would leave a file behind."""
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    for file, mapped in (
        ("config.json", {name: f"own.{name}" for name in names}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.Tokenizer", None]}),
    ):
        content = json.loads((model / file).read_text())
        content |= {"auto_map": mapped, "model_type": "own", "tokenizer_class": "Own"}
        (model / file).write_text(json.dumps(content))

    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda prompt="": asked.append(prompt) or "y")
    yield model
    assert asked == [] and not (tmp_path / "ran").exists()


OPEN = {
    "model": lambda path: load_causal_lm(path, dtype=torch.float32),
    "tokenizer": load_tokenizer,
    "context": context_of,
    "reward": lambda path: ClassifierReward.load("r", path, dtype=torch.float32, device=torch.device("cpu")),
    "generate": lambda path: run_generate(GenerateConfig(model_path=path, prompts=["w1"], use_cpu=True)),
}


@pytest.mark.parametrize("how", OPEN)
def test_a_model_with_code_of_its_own_is_refused_without_running_it(folder, how):
    with pytest.raises(UsageError, match=r"trust_remote_code|cannot open"):
        OPEN[how](str(folder))
