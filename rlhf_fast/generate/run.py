"""A generation from its config: open the model, sample, write one JSON line a response."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_fast.data.encode import encode_prompt
from rlhf_fast.data.fitting import encode_rows, prompt_room
from rlhf_fast.data.readers import read_prompts
from rlhf_fast.data.rendering import announce_prompts, compare, trained_stop
from rlhf_fast.data.schema import PromptRow
from rlhf_fast.generate.config import GenerateConfig
from rlhf_fast.model.load import context_of, load_shared, load_tokenizer
from rlhf_fast.model.roles import Policy
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling, stop_ids, stop_strings
from rlhf_fast.runtime.device import choose_device, choose_dtype
from rlhf_fast.runtime.distributed import refuse_many
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.files import disk_errors, write_text
from rlhf_fast.runtime.output import refuse_unwritable
from rlhf_fast.runtime.shown import notices, show_notices


def run_generate(config: GenerateConfig) -> Path:
    """Write `output_file` and return its path. Raises `UsageError` before anything is sampled."""
    refuse_many("generate")
    show_notices()
    if not config.model_path or not (config.prompts or config.dataset_name):
        raise UsageError("generation needs model_path, and prompts or dataset_name.")
    output = _output(config)
    tokenizer = load_tokenizer(config.model_path, config.chat_template_path)
    source = config.dataset_name or "the given prompts"
    room = prompt_room(config.response_length, context_of(config.model_path, generated=True))
    fitting = encode_rows(
        read(config, tokenizer), lambda row: encode_prompt(tokenizer, row.prompt, tools=row.tools, max_length=room),
        noun="prompt", source=source, on_bad_row=config.on_bad_row,
    )  # fmt: skip
    rows, ids, copies = [row for row, _ in fitting], [ids for _, ids in fitting], config.num_responses
    stop_token_id = trained_stop(config.model_path)
    rendering = replace(announce_prompts(tokenizer, rows, ids, source), stop_token_id=stop_token_id)
    compare(rendering, source, config.model_path)
    device = choose_device(config.use_cpu)
    shared, adapter = load_shared(config.model_path, dtype=choose_dtype(config.dtype, device), device=device)
    stop = stop_ids(tokenizer, stop_token_id=stop_token_id, model_eos=shared.eos_ids)
    responses = generate(
        Policy(shared, adapter), [prompt for prompt in ids for _ in range(copies)],
        Sampling(
            config.response_length, stop, config.temperature, config.top_k, config.top_p,
            stop_strings(tokenizer, config.stop),
        ),
        seeds=[(config.seed << 32) + i for i in range(copies * len(rows))],
        max_batch=config.max_rollout_batch, max_tokens=config.max_tokens_per_micro_batch,
        max_kv_cache_gb=config.max_kv_cache_gb,
    )  # fmt: skip
    texts = tokenizer.batch_decode([r.tokens for r in responses], skip_special_tokens=True)
    lines = [
        {"prompt": rows[i // copies].prompt, "response": text, "finished": response.finished}
        for i, (text, response) in enumerate(zip(texts, responses, strict=True))
    ]
    left = "What was there before is as it was; the same command gives the same responses."
    with disk_errors(f"write {str(output)!r}", left):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return output


def read(config: GenerateConfig, tokenizer: PreTrainedTokenizerBase) -> list[PromptRow]:
    """The prompts. Each of `prompts` is a user's turn where the tokenizer has a chat template, which is said; those of
    a data set are what they are there."""
    if config.prompts:
        chat, texts = tokenizer.chat_template is not None, config.prompts[: config.max_prompts]
        if chat:
            notices.info(
                "each of the given prompts is a user's turn here; plain-text prompts of a data set stay plain text"
            )
        return [PromptRow([{"role": "user", "content": text}] if chat else text) for text in texts]
    rows = read_prompts(config.dataset_name, format=config.dataset_format, on_bad_row=config.on_bad_row).rows
    return rows[: config.max_prompts]


def _output(config: GenerateConfig) -> Path:
    output = Path(config.output_file)
    if output.is_dir():
        raise UsageError(f"output_file={config.output_file!r} is a folder; give the name of a file.")
    refuse_unwritable("output_file", output.parent)
    return output
