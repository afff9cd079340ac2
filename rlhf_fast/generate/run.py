"""A generation from its config: open the model, sample, write one JSON line a response."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_prompt
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.schema import Prompt
from rlhf_fast.generate.config import GenerateConfig
from rlhf_fast.model.load import load_shared, load_tokenizer
from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling, stop_ids
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.errors import UsageError


def run_generate(config: GenerateConfig) -> Path:
    """Write `output_file` and return its path. Raises `UsageError` before anything is sampled."""
    if not config.model_path or not (config.prompts or config.dataset_name):
        raise UsageError("generation needs model_path, and prompts or dataset_name.")
    tokenizer = load_tokenizer(config.model_path, config.chat_template_path)
    prompts = read(config, tokenizer)
    device = choose_device(config.use_cpu)
    shared, adapter = load_shared(config.model_path, dtype=choose_dtype(config.dtype, device), device=device)
    room = None if shared.max_length is None else shared.max_length - config.response_length
    ids = [encode_prompt(tokenizer, prompt, max_length=room) for prompt in prompts]
    copies = config.num_responses
    responses = generate(
        Policy(shared, adapter), [row for row in ids for _ in range(copies)],
        Sampling(config.response_length, stop_ids(tokenizer), config.temperature, config.top_k, config.top_p),
        seeds=[(config.seed << 32) + i for i in range(copies * len(ids))],
        max_batch=config.max_rollout_batch, max_tokens=config.max_tokens_per_micro_batch,
    )  # fmt: skip
    texts = tokenizer.batch_decode([r.tokens for r in responses], skip_special_tokens=True)
    output = Path(config.output_file)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", encoding="utf-8") as file:
        for i, (text, response) in enumerate(zip(texts, responses, strict=True)):
            row = {"prompt": prompts[i // copies], "response": text, "finished": response.finished}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return output


def read(config: GenerateConfig, tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The prompts; one given as text becomes a user's turn where the tokenizer has a chat template."""
    if config.prompts:
        chat = tokenizer.chat_template is not None
        return [[{"role": "user", "content": text}] if chat else text for text in config.prompts[: config.max_prompts]]
    rows = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row).rows
    return [row.prompt for row in rows[: config.max_prompts]]
