"""Exported reward adapters: transformers gives the adapter's scores at the last token of a text, whatever ends it."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Ernie4_5Config

from rlhf_fast import ClassifierReward, ExportConfig, UsageError, run_export, run_ppo
from rlhf_fast.cli import main
from rlhf_fast.model.adapter_files import load_adapter, save_adapter
from rlhf_fast.model.roles import adapter_critic, sequence_scores
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.classifier import AdapterReward
from rlhf_fast.rewards.source import RewardBatch
from tests.model_cases import ARCHITECTURES, tiny_model, tokens
from tests.resume.cases import config, prepare, run
from tests.tiny_tokenizer import tiny_tokenizer

EOS = 2  # of the tiny tokenizer, whose pad token it is as well
SEQUENCES = [[*ids, EOS] for ids in tokens(3, 9)] + [[7, EOS, 9, EOS, EOS], [11, 12, 13, 14]]


def write(folder, architecture: str = "llama", *, bias: float = 0.0, tokenizer=None, model=None) -> AdapterReward:
    """A base and a reward adapter on it, as a source that reads token ids."""
    model = model or tiny_model(architecture)
    model.save_pretrained(folder / "base")
    (tokenizer or tiny_tokenizer()).save_pretrained(folder / "base")
    shared = SharedModel(model)
    shared.add_adapter("reward", LoraConfig(r=4, lora_alpha=12, target_modules="all-linear"), head=True)
    for parameter in shared.parameters("reward"):
        parameter.data.normal_(0, 0.2)
    shared.heads["reward"].bias.data.fill_(bias)
    save_adapter(shared, "reward", folder / "reward", base=str(folder / "base"))
    return AdapterReward("reward", adapter_critic(shared, "reward"))


def export(folder, **options):
    return run_export(ExportConfig(model_path=f"{folder}/reward", output_dir=f"{folder}/out", **options))


@torch.no_grad()
def logits(folder, sequences=SEQUENCES) -> torch.Tensor:
    """Of transformers, in one padded batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    padded = AutoTokenizer.from_pretrained(folder).pad({"input_ids": sequences}, return_tensors="pt")
    return model(**padded).logits[:, 0]


def opened(folder) -> ClassifierReward:
    return ClassifierReward.load("out", str(folder), dtype=torch.float32, device=torch.device("cpu"))


def batch(*texts: tuple[str, str], sequences, **options) -> RewardBatch:
    return RewardBatch([p for p, _ in texts], [r for _, r in texts], sequences, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_the_scores_of_the_adapter_though_pad_is_eos_and_texts_end_with_it(tmp_path, architecture):
    adapter = write(tmp_path, architecture)
    wanted = sequence_scores(adapter.model, SEQUENCES, 2048)
    assert wanted.std() > 0.1
    torch.testing.assert_close(logits(export(tmp_path)), wanted, atol=1e-5, rtol=1e-5)


def test_the_bias_of_a_normalised_head_goes_into_a_norm_that_has_one(tmp_path):
    adapter = write(tmp_path, "gpt2", bias=-1.75)
    wanted = sequence_scores(adapter.model, SEQUENCES, 2048)
    torch.testing.assert_close(logits(export(tmp_path)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_bias_without_a_place_is_refused_or_told_by_card_and_config(tmp_path, caplog, architecture):
    adapter = write(tmp_path, architecture, bias=0.625)
    with pytest.raises(UsageError, match=r"adds 0\.625 to every score, .* Give head_bias=leave_out"):
        export(tmp_path)
    assert not (tmp_path / "out").exists()
    out = export(tmp_path, head_bias="leave_out")
    assert "the reward's score less 0.625" in caplog.text
    wanted = sequence_scores(adapter.model, SEQUENCES, 2048)
    torch.testing.assert_close(logits(out), wanted - 0.625, atol=1e-5, rtol=1e-5)
    assert json.loads((out / "config.json").read_text())["rlhf_fast_reward"] == {"score_bias": 0.625}
    assert "Score = logit +0.625:" in (out / "README.md").read_text()


def test_the_pad_token_stands_for_nothing_else_and_one_that_does_is_left(tmp_path):
    write(tmp_path)
    out = export(tmp_path)
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForSequenceClassification.from_pretrained(out)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id) == ("<|pad|>", 97, 97)
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 98
    assert tokenizer.padding_side == "right" and tokenizer.eos_token_id == EOS
    own = tiny_tokenizer()
    own.pad_token = "w90"  # within the vocabulary, and no other role's
    write(tmp_path / "own", tokenizer=own)
    model = AutoModelForSequenceClassification.from_pretrained(export(tmp_path / "own"))
    assert (model.config.pad_token_id, model.config.vocab_size) == (96, 97)


def test_a_pad_token_that_ends_a_response_by_the_models_own_config_is_replaced(tmp_path):
    own, model = tiny_tokenizer(), tiny_model()
    own.pad_token = "w90"
    model.generation_config.eos_token_id = [EOS, 96]
    adapter = write(tmp_path, tokenizer=own, model=model)
    sequences = [[5, 6, 96], [7, 8, 9, EOS]]
    wanted = sequence_scores(adapter.model, sequences, 2048)
    torch.testing.assert_close(logits(export(tmp_path), sequences), wanted, atol=1e-5, rtol=1e-5)


def test_the_card_opens_it_as_a_classifier_and_tells_the_run(tmp_path, capsys):
    folder = prepare(tmp_path)
    run("reward", folder, tmp_path / "reward")
    command = ["export", "--model_path", f"{tmp_path}/reward", "--output_dir", f"{tmp_path}/out"]
    assert main(command) == 2 and "Give head_bias=leave_out" in capsys.readouterr().err
    assert main([*command, "--head_bias", "leave_out"]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'AutoModelForSequenceClassification.from_pretrained("out")' in card and "AutoModelForCausalLM" not in card
    told = ("by training on ranked responses", "last token that is not padding", "| accuracy |")
    assert all(words in card for words in told)
    assert str(tmp_path) not in card


def test_a_run_of_rlhf_fast_reads_the_export_as_it_reads_the_adapter(tmp_path):
    """Normalised: the bias is not in the logits. The critic does not start from the reward model in either run; the
    first iteration of both samples the same."""
    folder = prepare(tmp_path)
    run("reward", folder, tmp_path / "trained")
    out = str(tmp_path / "out")
    run_export(ExportConfig(model_path=f"{tmp_path}/trained", output_dir=out, head_bias="leave_out"))
    rows = []
    for path in (f"{tmp_path}/trained", out):
        options = {"reward_model_path": path, "critic": "reference_mlp", "total_episodes": 24, "temperature": 1.5}
        options |= {"per_device_train_batch_size": 24, "response_length": 40}
        run_ppo(config("ppo", folder, tmp_path / "ppo", **options))
        rows.append([json.loads(line) for line in (tmp_path / "ppo" / "rollouts.jsonl").open()])
    assert {row["finished"] for row in rows[0]} == {True, False}
    assert [row["response"] for row in rows[0]] == [row["response"] for row in rows[1]]
    ours, theirs = ([row["scores"]["reward_model"] for row in part] for part in rows)
    assert theirs == pytest.approx(ours, abs=1e-4) and len({round(score, 3) for score in ours}) > 4


def test_it_reads_the_sampled_ids_of_its_own_tokenizer_and_else_the_text_with_eos_where_it_ended(tmp_path):
    adapter = write(tmp_path, bias=0.5)
    reward = opened(export(tmp_path, head_bias="leave_out"))
    tokenizer = tiny_tokenizer()
    ids = tokenizer("w3 w4")["input_ids"] + tokenizer("w5")["input_ids"]
    own = [[*ids, EOS], [ids[0], EOS, *ids[1:]]]  # as sampled: with EOS, also in the middle
    plain = ("w3 w4 ", "w5")
    assert reward.score(batch(plain, plain, sequences=own)).tolist() == pytest.approx(
        sequence_scores(adapter.model, own, 2048).tolist(), abs=1e-5
    )
    foreign = [[50, 51], [50, 51]]  # of another tokenizer
    wanted = sequence_scores(adapter.model, [[*ids, EOS], ids], 2048).tolist()
    given = batch(plain, plain, sequences=foreign, finished=[True, False])
    assert reward.score(given).tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_conversation_in_another_tokenizers_ids_ends_where_the_response_does(tmp_path):
    adapter = write(tmp_path)
    reward = opened(export(tmp_path))
    asked = [{"role": "user", "content": "w3"}]
    text = "<|im_start|> user w3 <|im_end|> <|im_start|> assistant w5"
    wanted = sequence_scores(adapter.model, [[*tiny_tokenizer()(text)["input_ids"], EOS]], 2048).tolist()
    given = batch(("other", "w5"), sequences=[[50]], conversations=[asked], finished=[True])
    assert reward.score(given).tolist() == pytest.approx(wanted, abs=1e-5)


def test_an_architecture_without_a_classifier_is_refused_by_name(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = Ernie4_5Config(vocab_size=97, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, **sizes)
    write(tmp_path, model=AutoModelForCausalLM.from_config(shape, attn_implementation="eager").eval())
    with pytest.raises(UsageError, match=r"no sequence classifier for Ernie4_5ForCausalLM \(ernie4_5\)"):
        export(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_classifier_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    from transformers import LlamaForSequenceClassification

    plain = LlamaForSequenceClassification.forward

    def doubled(self, *args, **kwargs):
        out = plain(self, *args, **kwargs)
        out.logits = 2 * out.logits
        return out

    write(tmp_path)
    monkeypatch.setattr(LlamaForSequenceClassification, "forward", doubled)
    with pytest.raises(UsageError, match=r"LlamaForSequenceClassification of transformers gives .* expected the same"):
        export(tmp_path)


def test_a_reward_model_has_no_gguf(tmp_path):
    write(tmp_path)
    with pytest.raises(UsageError, match=r"gguf='f32' cannot be used.*no place for its scalar head"):
        export(tmp_path, gguf="f32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_written_in_the_dtype_that_is_asked_for(tmp_path, dtype):
    adapter = write(tmp_path)
    out = export(tmp_path, dtype=dtype)
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    wanted = sequence_scores(adapter.model, SEQUENCES, 2048)
    torch.testing.assert_close(logits(out).float(), wanted, atol=0.15, rtol=0.05)


def test_an_export_is_a_base_that_the_adapter_is_already_in(tmp_path):
    """Weights of the merged model, not of base and adapter: the base alone scores something else."""
    adapter = write(tmp_path)
    base = SharedModel(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    load_adapter(base, tmp_path / "reward", "reward")
    head = base.heads["reward"]
    with torch.no_grad():
        plain = [float(head(base.hidden(torch.tensor(s), [0, len(s)], None)[-1])) for s in SEQUENCES]
    ours = sequence_scores(adapter.model, SEQUENCES, 2048)
    assert (torch.tensor(plain) - ours).abs().max() > 0.1
    torch.testing.assert_close(logits(export(tmp_path)), ours, atol=1e-5, rtol=1e-5)
