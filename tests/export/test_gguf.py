"""GGUF files: transformers reads the logits and ids of the merged model from them; what has no place is refused."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM

from rlhf_fast import ExportConfig, UsageError, run_export
from rlhf_fast.export.gguf import gguf_tensors, model_metadata
from rlhf_fast.export.gguf_tokenizer import tokenizer_metadata
from tests.export.gguf_cases import (
    SPLITS,
    TEXTS,
    VOCABULARY,
    byte_tokenizer,
    export,
    log_probs,
    mean_kl,
    model,
    opened,
    opened_tokenizer,
    write_adapter,
    write_model,
)
from tests.model_cases import CONFIGS
from tests.tiny_tokenizer import CHATML, tiny_tokenizer

gguf = pytest.importorskip("gguf", reason="reads the files with the package gguf, of the extra gguf")

installed = Version(transformers.__version__)
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip


def contents(file) -> dict:
    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("llama", {}),
        ("llama", {"head_dim": 16, "tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {}),
    ],
)
def test_an_f32_file_has_the_logits_of_the_model(tmp_path, architecture, changes):
    made = model(architecture, **changes)
    write_model(tmp_path / "base", made)
    file = export(tmp_path, tmp_path / "base")
    config = made.config if architecture == "qwen3" or "mlp_bias" in changes else None  # not all read by transformers
    torch.testing.assert_close(log_probs(opened(file, config=config)), log_probs(made), atol=1e-5, rtol=1e-5)
    tied = changes.get("tie_word_embeddings", False)
    assert ("output.weight" in {tensor.name for tensor in gguf.GGUFReader(file).tensors}) != tied


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0"])
def test_a_file_holds_the_merged_model_in_the_type_that_is_asked_for(tmp_path, kind):
    write_model(tmp_path / "base", model("llama"))
    write_adapter(tmp_path / "adapter", tmp_path / "base")
    file = export(tmp_path, tmp_path / "adapter", kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors}
    assert {types[f"blk.1.{part}.weight"] for part in ("attn_q", "attn_output", "ffn_up")} == {kind.upper()}
    assert types["token_embd.weight"] == types["output.weight"] == kind.upper()
    assert types["blk.0.attn_norm.weight"] == types["output_norm.weight"] == "F32"
    assert types["blk.0.ffn_down.weight"] == {"q8_0": "F16"}.get(kind, kind.upper())  # its rows have 48 weights
    merged, base = (log_probs(AutoModelForCausalLM.from_pretrained(tmp_path / name)) for name in ("out", "base"))
    lost = mean_kl(merged, log_probs(opened(file)))
    assert lost < {"f16": 1e-6, "bf16": 1e-4, "q8_0": 1e-3}[kind] and mean_kl(merged, base) > 0.1


def test_weights_are_rounded_from_float32_and_not_from_those_of_the_folder(tmp_path):
    write_model(tmp_path / "base", model("llama"))
    write_adapter(tmp_path / "adapter", tmp_path / "base")
    file = export(tmp_path, tmp_path / "adapter", dtype="bfloat16")
    exact = run_export(ExportConfig(model_path=str(tmp_path / "adapter"), output_dir=str(tmp_path / "exact")))
    expected = log_probs(AutoModelForCausalLM.from_pretrained(exact))
    torch.testing.assert_close(log_probs(opened(file)), expected, atol=1e-5, rtol=1e-5)


def test_the_context_of_a_model_with_a_sliding_window_is_the_window(tmp_path):
    write_model(tmp_path / "base", model("mistral"))
    file = export(tmp_path, tmp_path / "base")
    assert contents(file)["llama.context_length"] == CONFIGS["mistral"].sliding_window == 4
    ours, own = log_probs(opened(file)), log_probs(model("mistral"))
    torch.testing.assert_close(ours[:, :4], own[:, :4], atol=1e-5, rtol=1e-5)
    assert (ours[:, 4:] - own[:, 4:]).abs().max() > 1e-3


def test_frequencies_of_llama3_are_those_of_theta_divided_by_a_tensor(tmp_path):
    made = model("llama", rope_parameters=LLAMA3, head_dim=16)
    write_model(tmp_path / "base", made)
    file = export(tmp_path, tmp_path / "base", "q8_0")
    (factors,) = (tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "rope_freqs.weight")
    assert factors.tensor_type.name == "F32" and contents(file)["llama.rope.freq_base"] == 1e4
    ours = 1e4 ** -(torch.arange(0, 16, 2) / 16) / torch.from_numpy(factors.data.copy())
    torch.testing.assert_close(ours, made.model.rotary_emb.inv_freq)
    assert factors.data[0] == 1 and factors.data[-1] == pytest.approx(8)


def test_linear_scaling_is_told():
    rope = {"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}
    metadata = model_metadata(model("qwen2", rope_parameters=rope).config)
    expected = {"scaling.type": "linear", "scaling.factor": 2.0, "freq_base": 5e3, "dimension_count": 8}
    assert {key: metadata[f"qwen2.rope.{key}"] for key in expected} == expected


@pytest.mark.skipif(installed < Version("5.18"), reason="older transformers do not read the splits of a file")
@pytest.mark.parametrize("pre", SPLITS)
def test_the_tokenizer_is_named_by_its_splits_and_gives_the_same_ids(tmp_path, pre):
    tokenizer = byte_tokenizer(pre)
    write_model(tmp_path / "base", model("llama"), pre)
    file = export(tmp_path, tmp_path / "base")
    assert contents(file)["tokenizer.ggml.pre"] == pre
    ours = opened_tokenizer(file)
    if pre != "smollm":  # whose single digits transformers does not read
        assert [ours(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert ours.get_vocab() | tokenizer.get_vocab() == ours.get_vocab()


def test_the_chat_template_and_the_special_tokens_come_along(tmp_path):
    tokenizer = byte_tokenizer("llama-bpe", bos=True)
    write_model(tmp_path / "base", model("llama"), "llama-bpe", bos=True)
    file = export(tmp_path, tmp_path / "base")
    told, ours = contents(file), opened_tokenizer(file)
    assert ours.chat_template == told["tokenizer.chat_template"] == CHATML
    if installed >= Version("5.23"):  # older ones do not read that BOS is added
        assert ours(TEXTS[1])["input_ids"] == [tokenizer.bos_token_id, *tokenizer(TEXTS[1])["input_ids"][1:]]
    assert told["tokenizer.ggml.add_bos_token"] and not told["tokenizer.ggml.add_eos_token"]
    ids = {name: told[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "padding")}
    assert ids == {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "padding": tokenizer.pad_token_id}


def test_every_row_of_the_embedding_has_a_token():
    tokenizer = byte_tokenizer()
    told = tokenizer_metadata(tokenizer, VOCABULARY)
    texts, types = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    assert len(texts) == len(types) == VOCABULARY and texts[-1] == f"[PAD{VOCABULARY - 1}]"
    assert types == [1] * 380 + [3, 3, 3, 4] + [5] * (VOCABULARY - 384)
    assert texts[380:384] == tokenizer.convert_ids_to_tokens([380, 381, 382, 383])


def test_the_card_names_the_file_and_without_the_field_there_is_none(tmp_path):
    write_model(tmp_path / "base", model("llama"))
    file = export(tmp_path, tmp_path / "base", "q8_0")
    assert "For llama.cpp: `out-Q8_0.gguf`" in (tmp_path / "out" / "README.md").read_text()
    assert contents(file)["general.name"] == "out"
    plain = run_export(ExportConfig(model_path=str(tmp_path / "base"), output_dir=str(tmp_path / "plain")))
    assert not list(plain.glob("*.gguf")) and "llama.cpp" not in (plain / "README.md").read_text()


@pytest.mark.parametrize(
    ("architecture", "changes", "expected"),
    [
        ("gpt2", {}, "type 'gpt2' .* one of llama, mistral, qwen2, qwen3"),
        ("gemma", {}, "type 'gemma'"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type='yarn'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "rope_type='llama3'"),
        ("qwen3", {"attention_bias": True}, "attention_bias=True"),
    ],
)
def test_a_model_without_a_place_in_gguf_is_refused_before_anything_is_written(
    tmp_path, architecture, changes, expected
):
    write_model(tmp_path / "base", model(architecture, **changes))
    with pytest.raises(UsageError, match=expected):
        export(tmp_path, tmp_path / "base")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_weight_without_a_name_in_gguf_is_refused():
    made = model("llama")
    made.model.layers[1].gate = torch.nn.Linear(2, 2)
    with pytest.raises(UsageError, match=r"weight 'model.layers.1.gate.weight' has no name in GGUF's 'llama'"):
        list(gguf_tensors(made))


def changed(change) -> object:
    tokenizer = byte_tokenizer()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    change(spec)
    tokenizer.backend_tokenizer.__setstate__(json.dumps(spec).encode())
    return tokenizer


REFUSED = {
    "WordLevel": tiny_tokenizer,
    "as of SentencePiece": lambda: changed(lambda spec: spec["model"].update(byte_fallback=True)),
    "normaliser Lowercase": lambda: changed(lambda spec: spec.update(normalizer={"type": "Lowercase"})),
    "no name for its splits .*ignore_merges=True": lambda: changed(
        lambda spec: spec["model"].update(ignore_merges=True)
    ),
    "no name for its splits .*WhitespaceSplit": lambda: changed(
        lambda spec: spec.update(pre_tokenizer={"type": "WhitespaceSplit"})
    ),
    "no name for its splits .*no split": lambda: changed(lambda spec: spec.update(pre_tokenizer=None)),
    "'<think>' takes spaces": lambda: changed(lambda spec: spec["added_tokens"][-1].update(lstrip=True)),
    "more than BOS before": lambda: changed(
        lambda spec: spec.update(
            post_processor={
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<think>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
                ],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {"<think>": {"id": "<think>", "ids": [383], "tokens": ["<think>"]}},
            }
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("expected", REFUSED)
def test_a_tokenizer_that_llama_cpp_would_read_differently_is_refused(expected):
    with pytest.raises(UsageError, match=f"cannot be written as GGUF: .*{expected}"):
        tokenizer_metadata(REFUSED[expected](), VOCABULARY)


def test_a_tokenizer_without_an_end_or_with_more_ids_than_rows_is_refused():
    tokenizer = byte_tokenizer()
    with pytest.raises(UsageError, match="has the id 383, and the model's vocabulary 383 tokens"):
        tokenizer_metadata(tokenizer, 383)
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="no EOS token"):
        tokenizer_metadata(tokenizer, VOCABULARY)


def test_a_weight_that_f16_cannot_hold_is_refused(tmp_path):
    made = model("llama")
    made.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    write_model(tmp_path / "base", made)
    with pytest.raises(UsageError, match=r"blk.0.ffn_up.weight has weights beyond the range of float16"):
        export(tmp_path, tmp_path / "base", "f16")
    assert not (tmp_path / "out").exists()


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    write_model(tmp_path / "base", model("llama"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r'pip install "rlhf-fast\[gguf\]"'):
        export(tmp_path, tmp_path / "base")
