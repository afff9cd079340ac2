"""What ends a response here ends it in transformers' `generate`, from every folder that a stage saves."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_fast import (
    ExportConfig,
    FunctionReward,
    GenerateConfig,
    PPORunConfig,
    SFTConfig,
    run_export,
    run_generate,
    run_ppo,
    run_sft,
)
from rlhf_fast.export.gguf_tokenizer import ends_metadata
from tests.model_cases import tiny_model
from tests.preferences.cases import write_rows
from tests.tiny_tokenizer import tiny_tokenizer

QUESTION = {"role": "user", "content": "w1 w2"}
EOS, OTHER = 2, 11  # the tokenizer's, and one that it knows nothing of


@pytest.fixture
def base(tmp_path) -> Path:
    """A model whose configs end a text with another token than its tokenizer."""
    model = tiny_model()
    model.config.eos_token_id = model.generation_config.eos_token_id = OTHER
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", [{"messages": [QUESTION, {"role": "assistant", "content": "w30 w31"}]}] * 8)
    return tmp_path


def sft(folder: Path, **options) -> Path:
    return run_sft(
        SFTConfig(
            model_name_or_path=str(folder / "base"), dataset_name=str(folder / "rows.jsonl"), dtype="float32",
            output_dir=str(folder / "sft"), use_cpu=True, disable_tqdm=True, num_train_epochs=20,
            per_device_train_batch_size=8, learning_rate=2e-2, save_strategy="no", **options,
        )
    )  # fmt: skip


def theirs(folder: Path) -> list[int]:
    """What transformers generates for the question, greedily, with the folder's own configs."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer.apply_chat_template([QUESTION], add_generation_prompt=True, return_tensors="pt")["input_ids"]
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, temperature=None)
    return out[0, ids.shape[1] :].tolist()


def ours(folder: Path, tmp_path: Path) -> dict:
    config = GenerateConfig(
        model_path=str(folder), prompts=["w1 w2"], response_length=9, temperature=0.0, use_cpu=True, dtype="float32",
        output_file=str(tmp_path / "responses.jsonl"),
    )  # fmt: skip
    return json.loads(run_generate(config).read_text())


def eos_of(folder: Path, name: str):
    return json.loads((folder / name).read_text())["eos_token_id"]


def test_an_exported_adapter_stops_in_transformers_where_it_stops_here(base, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "rlhf_fast.notices"):
        adapter = sft(base, lora_r=8)
    assert "the model's config ends a text with the token 11 and its tokenizer with 2 (<|im_end|>)" in caplog.text
    out = run_export(ExportConfig(model_path=str(adapter), output_dir=str(tmp_path / "out")))
    assert theirs(out) == [30 + 6, 31 + 6, EOS]
    for folder in (adapter, out):
        assert ours(folder, tmp_path) == {"prompt": [QUESTION], "response": "w30 w31", "finished": True}
    assert eos_of(out, "config.json") == eos_of(out, "generation_config.json") == EOS


def test_a_whole_model_that_sft_saves_says_what_ends_a_response(base):
    out = sft(base, use_peft=False)
    assert theirs(out) == [30 + 6, 31 + 6, EOS]
    assert eos_of(out, "config.json") == eos_of(out, "generation_config.json") == EOS


def test_several_ends_stay_several_and_reach_the_config(base, tmp_path):
    generation = json.loads((base / "base" / "generation_config.json").read_text())
    (base / "base" / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [EOS, 37]}))
    adapter = sft(base, lora_r=8)
    out = run_export(ExportConfig(model_path=str(adapter), output_dir=str(tmp_path / "out")))
    assert eos_of(out, "config.json") == eos_of(out, "generation_config.json") == [EOS, 37]
    assert theirs(out) == [36, 37]  # w31 ends a response, here and there
    assert ours(out, tmp_path) == ours(adapter, tmp_path) == {
        "prompt": [QUESTION], "response": "w30 w31", "finished": True
    }  # fmt: skip


@pytest.mark.parametrize("use_peft", [True, False])
def test_a_policy_that_ppo_trained_to_end_with_another_token_ends_with_it_afterwards(base, tmp_path, use_peft, caplog):
    caplog.set_level(logging.WARNING, "rlhf_fast.notices")
    sft(base, use_peft=use_peft)
    write_rows(base / "prompts.jsonl", [{"prompt": [QUESTION]}] * 4)
    config = PPORunConfig(
        sft_model_path=str(base / "sft"), dataset_name=str(base / "prompts.jsonl"), output_dir=str(base / "ppo"),
        stop_token_id=37, response_length=6, total_episodes=4, per_device_train_batch_size=4, use_cpu=True,
        disable_tqdm=True, dtype="float32", use_peft=use_peft, learning_rate=1e-6, save_strategy="no",
    )  # fmt: skip
    ppo = run_ppo(config, rewards=[(FunctionReward("f", lambda prompts, responses, **c: [0.0] * len(responses)), 1.0)])
    assert ours(ppo, tmp_path)["response"] == "w30 w31"
    said = [record.getMessage() for record in caplog.records if "was trained" in record.getMessage()]
    assert said == [f"{base / 'sft'} was trained on responses that end with EOS; here the token 37 (stop_token_id)"]
    out = ppo
    if use_peft:
        out = run_export(ExportConfig(model_path=str(ppo), output_dir=str(tmp_path / "out")))
    assert eos_of(out, "generation_config.json") == eos_of(out, "config.json") == 37
    assert theirs(out) == [36, 37] and ours(out, tmp_path)["finished"]


def test_gguf_has_a_place_for_the_first_ends_and_the_rest_is_said(caplog):
    assert ends_metadata((7,), 7) == {"tokenizer.ggml.eos_token_id": 7}
    assert ends_metadata((9, 7), 7) == {"tokenizer.ggml.eos_token_id": 7, "tokenizer.ggml.eot_token_id": 9}
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"):
        assert list(ends_metadata((9, 7, 8, 5), 7).values()) == [7, 9, 8]
    assert "GGUF has no place for the ends [5]" in caplog.text
