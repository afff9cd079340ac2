"""Small models and byte-level tokenizers that GGUF can hold, and their files opened by transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_fast import ExportConfig, run_export
from rlhf_fast.model.adapter_files import save_adapter
from rlhf_fast.model.shared import SharedModel
from tests.model_cases import CONFIGS, tokens
from tests.tiny_tokenizer import CHATML

VOCABULARY = 400
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS: dict[str, list[str]] = {
    "gpt-2": [], "smollm": ["digits"], "qwen2": [QWEN2], "tekken": [TEKKEN],
    "llama-bpe": [QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")],
}  # fmt: skip
TEXTS = [
    "Hello world, it's 2026! Don't pay 1234567.89 EUR;  two  spaces\tand\n\n lines \r\n",
    "<|im_start|>user\nGröße, naïve café, 日本語, русский, 🙂👩‍👧<|im_end|>\n<think> x</think>",
    "HTTPServer camelCase 'S \u00a0½²  tail  ",
]


def byte_tokenizer(pre: str = "gpt-2", *, bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 380 tokens with the splits that llama.cpp calls `pre`, and 4 added ones, 1 not special."""
    core = Tokenizer(models.BPE(ignore_merges=pre in ("llama-bpe", "tekken")))
    parts: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if part == "digits"
        else pre_tokenizers.Split(Regex(part), "isolated")
        for part in SPLITS[pre]
    ]
    own = pre in ("gpt-2", "smollm")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own)]
    )
    core.normalizer = normalizers.NFC() if pre == "qwen2" else None
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        [*TEXTS, *(f"{i} {i + 1000}" for i in range(99))] * 3,
        trainers.BpeTrainer(vocab_size=380, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|begin|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    tokenizer.add_tokens(["<think>"])
    if bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<|begin|> $A", special_tokens=[("<|begin|>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = CHATML
    return tokenizer


def model(architecture: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """Of `tests.model_cases`, with another vocabulary, and biases and norms that are not their initial ones."""
    config = copy.deepcopy(CONFIGS[architecture])
    config.update({"vocab_size": VOCABULARY, **changes})
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(type(config)(**config.to_diff_dict())).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return made


def write_model(folder: Path, made: PreTrainedModel, pre: str = "qwen2", *, bos: bool = False) -> None:
    """With a tokenizer of `byte_tokenizer`."""
    made.save_pretrained(folder)
    byte_tokenizer(pre, bos=bos).save_pretrained(folder)


def write_adapter(folder: Path, base: Path) -> None:
    """One that changes a lot."""
    shared = SharedModel(AutoModelForCausalLM.from_pretrained(base))
    shared.add_adapter("a", LoraConfig(r=4, lora_alpha=12, target_modules="all-linear"))
    torch.manual_seed(1)
    for parameter in shared.parameters("a"):
        parameter.data.normal_(0, 0.2)
    save_adapter(shared, "a", folder, base=str(base))


def export(folder: Path, path: Path, gguf: str = "f32", **options: Any) -> Path:
    """The GGUF file of `folder`/out, moved to where nothing is beside it."""
    out = run_export(ExportConfig(model_path=str(path), output_dir=str(folder / "out"), gguf=gguf, **options))  # type: ignore[arg-type]
    alone = folder / "alone"
    alone.mkdir()
    return (out / f"out-{gguf.upper()}.gguf").rename(alone / "model.gguf")


def opened(file: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32, **options).eval()


def opened_tokenizer(file: Path) -> Any:
    return AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@torch.no_grad()
def log_probs(made: PreTrainedModel, length: int = 12) -> torch.Tensor:
    return made.eval()(torch.tensor(tokens(length))).logits.float().log_softmax(-1)


def mean_kl(p: torch.Tensor, q: torch.Tensor) -> float:
    """KL(p || q) a token, in nats."""
    return float((p.exp() * (p - q)).sum(-1).mean())
