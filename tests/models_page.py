"""docs/models.md, made from what happens to a tiny model of each family: saved, opened and compared.

    python -m tests.models_page    writes the page for the installed transformers

A family is opened by the function that opens a user's model, which serves or refuses it. What is served is compared
once more with transformers here, by code of its own: packed sequences, and greedy decoding.
"""

from __future__ import annotations

import logging
import re
import tempfile
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from rlhf_fast.model import check, fused_blocks, rope
from rlhf_fast.model.load import load_shared
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.packed_decoder import unserved
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.model.small_copy import small_config
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from tests.model_cases import tokens

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
_GRANITE = {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22}
_LATENT = {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 2, "n_routed_experts": 8, "first_k_dense_replace": 1}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [1.0 + i for i in range(48)],
    "original_max_position_embeddings": 4096,
}  # fmt: skip
PLAIN = """
afmoe apertus arcee bamba biogpt bitnet bloom codegen cohere cohere2 ctrl cwm deepseek_v3 deepseek_v32
deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe exaone4 falcon falcon_h1 falcon_mamba flex_olmo gemma gemma2
gemma3 gemma3_text gemma3n_text gemma4 gemma4_text glm glm4 glm4_moe glm4_moe_lite gpt2 gpt_bigcode gpt_neo
gpt_neox gpt_oss gptj granitemoehybrid helium hy_v3 hyperclovax internlm3 jais2 jamba jetmoe kimi_linear llama
llama4_text longcat_flash mamba mimo_v2_flash minicpm3 minimax minimax_m2 ministral3 mistral mixtral
modernbert-decoder mpt nanochat nemotron_h olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt persimmon phi
phi4_multimodal qwen2 qwen2_moe qwen3 qwen3_5_text qwen3_moe qwen3_next recurrent_gemma rwkv seed_oss smollm3
solar_open stablelm starcoder2 vaultgemma xglm youtu zamba2 zaya
"""
# Families by model_type, with what their checkpoints set and the config's defaults do not.
FAMILIES: dict[str, dict[str, Any]] = {
    **{family: {} for family in PLAIN.split()},
    "gemma4_text, shared keys": {"num_kv_shared_layers": 10},
    "gemma4_text, experts": {
        "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 64,
    },
    "granitemoehybrid, attention only": {"layer_types": ["full_attention"] * 32},
    "deepseek_v2": _LATENT | {"topk_method": "greedy"},
    "deepseek_v3": _LATENT,
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "granitemoeshared": _GRANITE,
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128, "num_experts": 8, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128, "num_key_value_heads": 8},
    "nemotron": {"num_key_value_heads": 8, "head_dim": 128},
    "phi3": {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 4096, "max_position_embeddings": 131072},
    "phimoe": {"rope_parameters": _LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.3}},
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What a family's model became: `reason` is why it was refused, None where it is served."""

    family: str
    architecture: str
    forward: str = ""
    decoding: str = ""
    speed: str = ""
    notes: str = ""
    reason: str | None = None


def tiny(family: str) -> PreTrainedModel:
    """A random model of the family with transformers' own attention."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family.partition(",")[0]](**FAMILIES[family])
    model = AutoModelForCausalLM.from_config(small_config(config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def row_of(family: str) -> Row:
    """Open a tiny model of `family` from a folder. Raises whatever is not a `UsageError`, and `AssertionError` for a
    model that is served and gives other numbers than transformers."""
    own = tiny(family)
    name, said = type(own).__name__, _Said()
    check._log_once.cache_clear()
    rope._log_once.cache_clear()
    logger = logging.getLogger("rlhf_fast.notices")
    logger.addHandler(said)
    try:
        with tempfile.TemporaryDirectory() as folder:
            own.save_pretrained(folder)
            shared, _ = load_shared(folder, dtype=torch.float32)
    except UsageError as error:
        return Row(family, name, reason=_reason(str(error)))
    finally:
        logger.removeHandler(said)
    one_by_one = compare(shared, own)
    blocks, packed = fused_blocks.is_served(shared.base), unserved(shared) is None
    speed = "fast" if blocks and packed else "slow" if one_by_one else "plain"
    notes = ["experts take no adapter"] if said.has("leave the experts") else []
    if shared.places.as_experts:
        assert said.has("PEFT takes these names")
        notes.append("nor do `gate_proj`, `up_proj`, `down_proj` elsewhere")
    if not shared.serves_trunk:
        assert said.has("share more than hidden states")
        notes.append("no trunk")
    if said.has("rotary embedding"):
        assert shared.generation_length == 6, "the tiny model's"
        notes.append("responses within `original_max_position_embeddings`")
    paths = [f"{'C++ blocks' if blocks else 'modules'}", f"{'packed decoder' if packed else 'modules'}"]
    return Row(family, name, *paths, speed, "; ".join(notes))


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def has(self, word: str) -> bool:
        return any(word in line for line in self.lines)


def _reason(message: str) -> str:
    found = re.search(r"is not supported: (.*)\. Use a decoder", message, re.DOTALL)
    reason = " ".join((found[1] if found else message).split())
    return re.sub(r" by [\d.e+-]+ \(relative, allowed [\d.e+-]+\)", "", reason).replace("|", "\\|")


@torch.no_grad()
def compare(shared: SharedModel, own: PreTrainedModel) -> bool:
    """Assert that packed logits and greedy responses are those of `own`, each sequence alone; whether attention ran
    sequence by sequence."""
    sequences = [[token % 80 + 16 for token in sequence] for sequence in tokens(1, 5, 12, 19)]
    calls: list[int] = []
    module = import_module("rlhf_kernels.packed_attention")
    plain = module._by_sequence
    module._by_sequence = lambda *given: calls.append(1) or plain(*given)  # type: ignore[attr-defined]
    try:
        packed = Packed.from_sequences(sequences)
        hidden = shared.hidden(packed.tokens, packed.cu_seqlens, None)
    finally:
        module._by_sequence = plain  # type: ignore[attr-defined]
    weight, bias = shared.lm_head
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if shared.softcap is not None:
        logits = (logits / shared.softcap).tanh() * shared.softcap
    for sequence, (start, end) in zip(sequences, pairwise(packed.cu_seqlens), strict=True):
        torch.testing.assert_close(logits[start:end], _own(own, sequence), atol=1e-4, rtol=1e-4)
    room = shared.generation_length or 24
    prompts = [sequence[: room - 5] for sequence in sequences[:3]]
    responses = generate(Policy(shared, None), prompts, Sampling(5, (), 0.0), seeds=[0] * 3)
    for prompt, response in zip(prompts, responses, strict=True):
        for i, token in enumerate(response.tokens):
            scores = _own(own, prompt + response.tokens[:i])[-1]
            assert scores[token] >= scores.max() - 1e-4
    return bool(calls)


def _own(own: PreTrainedModel, sequence: list[int]) -> torch.Tensor:
    own(input_ids=torch.tensor([sequence[:1]]), use_cache=False)  # forgets the longest sequence so far
    return own(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]


def page(rows: list[Row]) -> str:
    """The text of docs/models.md."""
    served, refused = ([row for row in rows if (row.reason is None) == kind] for kind in (True, False))
    top = TOP.format(version=transformers.__version__, served=len(served), refused=len(refused))
    first = ["| family | class | training | decoding | speed | notes |", "| --- | --- | --- | --- | --- | --- |"]
    second = ["| family | class | why |", "| --- | --- | --- |"]
    return "\n".join([top, *first, *map(line, served), MIDDLE, *second, *map(line, refused)]) + "\n"


def line(row: Row) -> str:
    """The row of a table of the page."""
    rest = [row.reason] if row.reason is not None else [row.forward, row.decoding, row.speed, row.notes]
    return f"| {' | '.join([row.family, row.architecture, *rest])} |"


TOP = """# Models

Any causal language model of transformers may be opened. When it is, it is compared with transformers: a few tokens
through the model itself, and longer sequences through a small random model of its kind, in which every window, chunk
and change of the rotary embedding lies within their lengths; packed and decoded, with and without an adapter. A model
that differs is refused with the reason, before the first step. So this table is no list of what is allowed: a family
that is not in it is tried like any other.

Written by `python -m tests.models_page` from tiny models, saved, opened and compared; a test holds it against the
code. transformers {version}: {served} families served, {refused} refused.

## Served, exactly

Packed forward and decoding with a key-value cache give what transformers gives for each sequence alone.

- training: `C++ blocks` are norms, rotary embedding, SwiGLU and attention of the kernel library; `modules` are those
  of transformers, with packed attention inside.
- decoding: the `packed decoder` is one C++ call a token step; `modules` as above.
- speed: `fast` has both in C++ (on a CPU); `plain` has packed attention only; `slow` attends sequence by sequence
  (soft-capped scores, or values narrower or wider than keys).
- Experts that a layer holds in one tensor take no adapter, which a line in the log says; `use_peft=False` trains
  them.
- PEFT takes `gate_proj`, `up_proj` and `down_proj` in a file for the experts' of some families: where it does, layers
  of these names, such as a shared expert's, take no adapter either.
- `no trunk`: layers below all adapters run for every role, as they share more than hidden states.
- Of a checkpoint with images or sound only the text decoder is used, and only it takes adapters.
- Rotary embeddings: default, linear, llama3, yarn and proportional hold at any length. Those of longrope and of
  dynamic scaling change with the length of a sequence: each of a pack gets its own, and a prompt with its sampled
  response has to fit below the length at which they change (`original_max_position_embeddings`, or for dynamic
  scaling `max_position_embeddings`).
"""
MIDDLE = """
## Refused

"""


def write() -> None:
    rows = [row_of(family) for family in sorted(FAMILIES)]
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    write()
