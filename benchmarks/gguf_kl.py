"""What the types of a GGUF file lose: KL(merged || GGUF) on the demonstration's held-out conversations, and the size.

    python -m benchmarks.gguf_kl --model runs/demo/ppo

The merged model and each file, opened by transformers, in float32. The first row is the model before its training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlhf_fast.export.config import ExportConfig
from rlhf_fast.export.run import run_export
from rlhf_fast.model.load import resolve_source

KINDS = ("f32", "f16", "bf16", "q8_0")
TEXTS = Path(__file__).parents[1] / "rlhf_fast/demo/data/customer_service.jsonl"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="runs/demo/ppo", help="An adapter folder.")
    parser.add_argument("--texts", type=int, default=144, help="Conversations to measure on.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/gguf"), help="Scratch; made anew.")
    given = parser.parse_args()
    shutil.rmtree(given.output_dir, ignore_errors=True)
    options = {"model_path": given.model, "dtype": "float32"}
    files = {
        kind: run_export(ExportConfig(output_dir=str(given.output_dir / kind), gguf=kind, **options)) for kind in KINDS
    }
    merged = load(files["f32"])
    texts = list(itertools.islice(conversations(files["f32"]), given.texts))
    print(f"{sum(len(text) - 1 for text in texts)} tokens\n")
    print("| weights | MB | mean KL, nats a token | largest | same first choice |\n" + "|" + " --- |" * 5)
    base = load(Path(resolve_source(given.model).base))
    print(f"| the base, untrained | | {row(merged, base, texts)} |")
    for kind, folder in files.items():
        (file,) = folder.glob("*.gguf")
        print(f"| {kind} | {file.stat().st_size / 1e6:.0f} | {row(merged, load(folder, file.name), texts)} |")


def load(folder: Path, file: str | None = None) -> PreTrainedModel:
    options = {"gguf_file": file} if file else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def conversations(folder: Path) -> Iterator[list[int]]:
    """Ids of each held-out prompt with the first of its replies."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for line in TEXTS.read_text(encoding="utf-8").splitlines():
        shown = json.loads(line)
        if shown["split"] == "heldout":
            turns = [*shown["prompt"], {"role": "assistant", "content": shown["responses"][0]}]
            yield tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False)["input_ids"]


def row(merged: PreTrainedModel, other: PreTrainedModel, texts: list[list[int]]) -> str:
    kls, same = [], []
    for text in texts:
        p, q = (model(torch.tensor([text])).logits[0, :-1].log_softmax(-1) for model in (merged, other))
        kls.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).float())
    kl, agreement = torch.cat(kls), torch.cat(same).mean()
    return f"{kl.mean():.2g} | {kl.max():.2g} | {agreement:.1%}"


if __name__ == "__main__":
    main()
