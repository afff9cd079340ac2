"""Files of adapters and models: what makes the round trip, and what is refused with a remedy."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from rlhf_fast.model.adapter_files import load_adapter, save_adapter
from rlhf_fast.model.load import Source, load_shared, load_tokenizer, resolve_source
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tiny_model, tokens
from tests.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A tiny model and its tokenizer as `save_pretrained` writes them."""
    tiny_model().save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def saved(folder: Path, base: str | Path, *, head: bool = False) -> SharedModel:
    shared = SharedModel(tiny_model())
    shared.add_adapter("a", LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), head=head)
    for parameter in shared.parameters("a"):
        torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(shared, "a", folder, base=str(base))
    return shared


def test_an_adapter_folder_opens_its_base_and_the_adapter(base, tmp_path):
    ours = saved(tmp_path / "sft", base, head=True)
    assert resolve_source(str(tmp_path / "sft")) == Source(str(base), str(tmp_path / "sft"))
    shared, name = load_shared(str(tmp_path / "sft"), dtype=torch.float32)
    assert name == "sft" and not any(p.requires_grad for k, p in shared.base.named_parameters() if "lora" not in k)
    sequence = torch.tensor(tokens(9)[0])
    torch.testing.assert_close(shared.hidden(sequence, [0, 9], "sft"), ours.hidden(sequence, [0, 9], "a"))
    torch.testing.assert_close(shared.heads["sft"].weight, ours.heads["a"].weight)
    torch.testing.assert_close(shared.heads["sft"].bias, ours.heads["a"].bias)

    plain, none = load_shared(str(base), dtype=torch.bfloat16)
    assert none is None and plain.dtype == torch.bfloat16 and not plain.configs


def test_saving_an_adapter_without_a_head_leaves_no_head_of_an_earlier_one(tmp_path):
    saved(tmp_path, "tiny", head=True)
    saved(tmp_path, "tiny")
    again = SharedModel(tiny_model())
    load_adapter(again, tmp_path, "a")
    assert "a" not in again.heads


def test_saving_leaves_the_adapter_in_memory_as_it_was(tmp_path):
    shared = SharedModel(tiny_model())
    shared.add_adapter("a", LoraConfig(target_modules="all-linear"))
    before = shared.configs["a"].to_dict()
    save_adapter(shared, "a", tmp_path, base="tiny")
    assert shared.configs["a"].to_dict() == before
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_an_adapter_that_peft_began_at_random_is_read_but_one_that_changed_its_base_is_not(tmp_path):
    for number, initialisation in enumerate((False, "gaussian", "pissa")):
        config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=initialisation)
        peft.get_peft_model(tiny_model(), config).save_pretrained(tmp_path / str(number))
    shared = SharedModel(tiny_model())
    load_adapter(shared, tmp_path / "0", "random")
    load_adapter(shared, tmp_path / "1", "gaussian")
    theirs = load_file(tmp_path / "1" / "adapter_model.safetensors")
    assert {f"base_model.model.{key}" for key, _ in shared.named_parameters("gaussian")} == theirs.keys()
    with pytest.raises(UsageError, match="pissa"):
        load_adapter(shared, tmp_path / "2", "pissa")


def test_a_truncated_adapter_file_is_refused_with_its_folder_and_the_remedy(tmp_path):
    saved(tmp_path, "tiny")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"copy it afresh") as error:
        load_adapter(SharedModel(tiny_model()), tmp_path, "a")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_adapter_file_is_named(tmp_path, name):
    saved(tmp_path, "tiny")
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=name.replace(".", r"\.")):
        load_adapter(SharedModel(tiny_model()), tmp_path, "a")


def test_an_adapter_that_does_not_fit_is_refused_and_leaves_the_model_as_it_was(tmp_path):
    saved(tmp_path, "their-base")
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    key = next(iter(tensors))
    gpt2, llama = SharedModel(tiny_model("gpt2")), SharedModel(tiny_model())
    with pytest.raises(UsageError, match="their-base"):
        load_adapter(gpt2, tmp_path, "a")
    save_file({k: v for k, v in tensors.items() if k != key}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"missing.*Open it with the base model"):
        load_adapter(llama, tmp_path, "a")
    save_file(tensors | {key: torch.zeros(4, 33)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match=r"is \(4, 33\), expected"):
        load_adapter(llama, tmp_path, "a")
    assert not gpt2.configs and not llama.configs
    llama.add_adapter("a", LoraConfig(target_modules="all-linear"))  # the name is free again


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot read"), ("{}", "base_model_name_or_path"), ('{"r": 8}', "does not name")]
)
def test_an_adapter_config_that_does_not_tell_its_base_is_refused(tmp_path, text, message):
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        resolve_source(str(tmp_path))


def test_a_missing_model_folder_and_one_without_a_model_are_told_apart(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_shared(str(tmp_path / "nowhere"), dtype=torch.float32)
    with pytest.raises(UsageError, match=r"has no config\.json"):
        load_shared(str(tmp_path), dtype=torch.float32)


def test_a_quantised_model_is_refused(base):
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="unquantised"):
        load_shared(str(base), dtype=torch.float32)


def test_a_model_whose_weights_are_incomplete_is_refused_rather_than_filled_at_random(base):
    weights = load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_shared(str(base), dtype=torch.float32)
    (base / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="safetensors"):
        load_shared(str(base), dtype=torch.float32)


def test_the_tokenizer_of_an_adapter_is_its_own_else_that_of_its_base(base, tmp_path):
    saved(tmp_path / "sft", base)
    assert load_tokenizer(str(tmp_path / "sft")).chat_template == tiny_tokenizer().chat_template
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "sft")
    assert load_tokenizer(str(tmp_path / "sft")).chat_template is None
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    assert load_tokenizer(str(base), str(tmp_path / "chat.jinja")).chat_template == "{{ messages }}"
    with pytest.raises(UsageError, match="chat_template_path"):
        load_tokenizer(str(base), str(tmp_path / "none.jinja"))
