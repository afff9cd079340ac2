"""Exported models: what transformers opens gives the adapter's logits, and the card tells what the run knew."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_fast import ExportConfig, UsageError, run_export
from rlhf_fast.cli import main
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.shared import SharedModel
from tests.model_cases import ARCHITECTURES, tiny_model, tokens
from tests.resume.cases import prepare, run
from tests.tiny_tokenizer import CHATML, tiny_tokenizer


def write(folder, architecture: str = "llama", *, dtype=torch.float32) -> None:
    """A base and an adapter on it that changes a lot."""
    tiny_model(architecture).to(dtype).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    shared = SharedModel(tiny_model(architecture))
    shared.add_adapter("a", LoraConfig(r=4, lora_alpha=12, target_modules="all-linear"))
    for parameter in shared.parameters("a"):
        parameter.data.normal_(0, 0.2)
    save_adapter(shared, "a", folder / "adapter", base=str(folder / "base"))


def export(folder, name: str = "adapter", **options):
    return run_export(ExportConfig(model_path=str(folder / name), output_dir=str(folder / "out"), **options))


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(torch.tensor(tokens(12))).logits.float()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_has_the_logits_of_base_and_adapter(tmp_path, architecture):
    write(tmp_path, architecture)
    out = export(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    plain = logits(base)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "adapter"))
    ours = logits(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32))
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(ours, adapted, atol=2e-5, rtol=2e-5)


def test_the_tokenizer_and_its_template_come_along(tmp_path):
    write(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(export(tmp_path))
    assert tokenizer.chat_template == CHATML and tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize(("options", "expected"), [({}, "BF16"), ({"dtype": "float32"}, "F32")])
def test_weights_are_in_the_dtype_of_the_base_or_that_which_is_asked_for(tmp_path, options, expected):
    write(tmp_path, dtype=torch.bfloat16)
    with safe_open(export(tmp_path, **options) / "model.safetensors", "pt") as file:
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {expected}  # noqa: SIM118


def test_a_whole_model_is_exported_as_it_is(tmp_path):
    write(tmp_path)
    ours = logits(AutoModelForCausalLM.from_pretrained(export(tmp_path, "base")))
    torch.testing.assert_close(ours, logits(AutoModelForCausalLM.from_pretrained(tmp_path / "base")), atol=0, rtol=0)


def test_the_card_tells_base_config_and_metrics_of_the_run_and_no_local_path(tmp_path):
    folder = prepare(tmp_path)
    run("sft", folder, tmp_path / "sft")
    metrics = [json.loads(line) for line in (tmp_path / "sft" / "metrics.jsonl").open()]
    card = (export(tmp_path, "sft") / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: transformers\ntags: ["rlhf-fast", "sft"]\n---\n\n# out\n')
    assert "`base`, with its adapter merged in, by supervised fine-tuning" in card
    assert f"| eval_loss | {metrics[0]['eval_loss']:.4g} | {metrics[-1]['eval_loss']:.4g} |" in card
    assert "| learning_rate | `0.01` |" in card and "| dataset_name | `demonstrations.jsonl` |" in card
    assert str(tmp_path) not in card and 'from_pretrained("out")' in card


def test_a_checkpoint_can_be_exported_with_its_own_metrics(tmp_path):
    run("ppo", prepare(tmp_path), tmp_path / "ppo")
    card = (export(tmp_path, "ppo/checkpoint-4") / "README.md").read_text()
    assert "After 4 steps:" in card and "by PPO from human feedback" in card


def test_a_hub_base_is_named_in_the_front_matter(tmp_path):
    from rlhf_fast.export.card import Facts, card
    from rlhf_fast.model.load import Source

    text = card("mine", Source("owner/model", "adapter"), torch.float32, Facts({}, []))
    assert 'base_model: "owner/model"' in text.split("---")[1] and "## Metrics" not in text


HOSTILE = "x`](http://evil.example)\n\n# Free\n---\n<img src=x onerror=1>|\x1b[2J"


def test_a_run_from_elsewhere_cannot_write_into_the_card(tmp_path):
    """Names and values of run.json and metrics.jsonl are shown letter by letter, on their line of a table."""
    folder = prepare(tmp_path)
    run("sft", folder, tmp_path / "sft")
    facts = json.loads((tmp_path / "sft" / "run.json").read_text())
    facts |= {"seed": HOSTILE, HOSTILE: 1, "lora_target_modules": [HOSTILE], "stage": f"sft\n{HOSTILE}"}
    (tmp_path / "sft" / "run.json").write_text(json.dumps(facts))
    rows = [{"step": HOSTILE, "loss": HOSTILE, "lr": 0.5}, {"step": 6, HOSTILE: 0.25, "loss": 2}]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = (export(tmp_path, "sft") / "README.md").read_text()
    lines = card.splitlines()
    assert [line for line in lines if line.startswith(("#", "---"))] == [
        "---", "---", "# out", "## Metrics", "## Training"
    ]  # fmt: skip
    assert lines[:4] == ["---", "library_name: transformers", 'tags: ["rlhf-fast"]', "---"]
    shown = r"`x'](http://evil.example)\x0a\x0a# Free\x0a---\x0a<img src=x onerror=1>\|\x1b[2J`"
    assert f"| {shown} | 0.25 | 0.25 |" in lines and f"| {shown} | `1` |" in lines and f"| seed | {shown} |" in lines
    assert "| loss | 2 | 2 |" in lines and "| lr | 0.5 | 0.5 |" in lines and "After 6 steps:" in lines
    assert card.replace("\n", "").isprintable()
    for line in lines:
        outside = "".join(line.split("`")[::2])
        assert "evil" not in outside and "<img" not in outside


@pytest.mark.parametrize("text", ["[1, 2]", "{", '"text"'])
def test_a_run_json_that_holds_something_else_is_named(tmp_path, text):
    write(tmp_path)
    (tmp_path / "base" / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"cannot read what .* says of its run, in run\.json"):
        export(tmp_path, "base")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path):
    write(tmp_path)
    with pytest.raises(UsageError, match=r"head_bias='leave_out' cannot be used.*is no reward adapter"):
        export(tmp_path, head_bias="leave_out")
    (tmp_path / "adapter" / "adapter_model.safetensors").rename(tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(UsageError, match="cannot read the adapter in"):
        export(tmp_path)
    with pytest.raises(UsageError, match="needs model_path"):
        run_export(ExportConfig(output_dir=str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
    with pytest.raises(UsageError, match="is there already"):
        run_export(ExportConfig(model_path=str(tmp_path / "base"), output_dir=str(tmp_path / "base")))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    write(tmp_path)
    tiny_model("gpt2").save_pretrained(tmp_path / "base")
    with pytest.raises(UsageError, match=r"the adapter in .* base model"):
        export(tmp_path)


def test_the_command_line_prints_where_the_model_is(tmp_path, capsys):
    write(tmp_path)
    assert main(["export", "--model_path", f"{tmp_path}/adapter", "--output_dir", f"{tmp_path}/out"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
