"""Rotary embeddings whose angles depend on a sequence's length: right for each sequence of a pack, or refused."""

from __future__ import annotations

import copy
import json
import logging
import math

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PhimoeConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rlhf_fast import (
    FunctionReward,
    GenerateConfig,
    PPORunConfig,
    SFTConfig,
    run_generate,
    run_ppo,
    run_sft,
)
from rlhf_fast.model.check import check_architecture
from rlhf_fast.model.load import context_of
from rlhf_fast.model.lora import Route
from rlhf_fast.model.packed import Packed
from rlhf_fast.model.roles import Policy
from rlhf_fast.model.rope import _log_once, rope_threshold
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.classifier import ClassifierReward
from rlhf_fast.rewards.source import RewardBatch
from rlhf_fast.rollout.engine import generate
from rlhf_fast.rollout.sampling import Sampling
from rlhf_fast.runtime.errors import UsageError
from rlhf_fast.runtime.tracking import read_metrics
from rlhf_fast.train import ppo_run
from tests.model_cases import tokens
from tests.tiny_tokenizer import tiny_tokenizer

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": 8,
    "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 3.0, 5.0, 9.0],
}  # fmt: skip
MIXED = {"sliding_attention": {"rope_type": "default", "rope_theta": 100.0}, "full_attention": LONG}
LENGTH_DEPENDENT: dict[str, PreTrainedConfig] = {
    "phi3 longrope": Phi3Config(**SIZES, rope_parameters=LONG, original_max_position_embeddings=8),
    "phimoe longrope": PhimoeConfig(
        **SIZES, num_local_experts=4, rope_parameters=LONG | {"short_mscale": 1.0, "long_mscale": 1.2}
    ),
    "gemma3, one of two ropes": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"],
        rope_parameters=MIXED,
    ),
    "llama dynamic": LlamaConfig(
        **SIZES | {"max_position_embeddings": 8},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0},
    ),
    "qwen2 dynamic": Qwen2Config(
        **SIZES | {"max_position_embeddings": 8},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0},
    ),
}  # fmt: skip
FIXED: dict[str, PreTrainedConfig] = {
    "llama linear": LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}),
    "llama llama3": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    ),
    "qwen3 yarn": Qwen3Config(
        **SIZES, head_dim=8,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8,
        },
    ),
}  # fmt: skip
LENGTHS = (5, 19, 8, 1, 13, 9)  # around 8, where the angles change


def model_of(config: PreTrainedConfig):
    """A fresh one: the rotary embedding of transformers remembers the longest sequence that it has seen."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(shared: SharedModel, sequences: list[list[int]]) -> torch.Tensor:
    packed = Packed.from_sequences(sequences)
    return shared.hidden(packed.tokens, packed.cu_seqlens, None) @ shared.lm_head[0].T


def shared_with(rope: dict) -> SharedModel:
    """A Llama with one head of four numbers: two angles for each position."""
    sizes = SIZES | {"hidden_size": 4, "num_attention_heads": 1, "num_key_value_heads": 1}
    return SharedModel(model_of(LlamaConfig(**sizes | {"max_position_embeddings": 4}, rope_parameters=rope)))


def cosines(shared: SharedModel, positions: list[list[int]], angle: int) -> torch.Tensor:
    """(B, T) cosines of the angle with this number, as a forward through `SharedModel` gets them."""
    where = torch.tensor(positions)
    with shared.routing.use(Route.single(None, where.numel())):
        return shared.base.model.rotary_emb(torch.zeros(1), where)[0][..., angle]


def test_longrope_takes_its_long_factors_for_the_long_sequence_of_a_pack_only():
    rope = LONG | {
        "original_max_position_embeddings": 3, "short_factor": [1.0, 1.0], "long_factor": [2.0, 1.0],
        "attention_factor": 1.0,
    }  # fmt: skip
    found = cosines(shared_with(rope), [[0, 1, 0, 1, 2, 3, 0, 1, 2]], 0)  # 2, 4 and 3 tokens
    expected = torch.tensor([[0, 1, 0, 0.5, 1, 1.5, 0, 1, 2]]).cos()  # position / factor
    torch.testing.assert_close(found, expected)


def test_dynamic_scaling_is_by_the_length_of_each_sequence():
    shared = shared_with({"rope_type": "dynamic", "rope_theta": 16.0, "factor": 2.0})
    # second angle: position / sqrt(base); base is 16 up to 4 tokens, then 16 * (2 * length / 4 - 1)^2
    short, six, eight = [0, 1, 2, 3], list(range(6)), list(range(8))
    found = cosines(shared, [short + six + eight + short], 1)
    expected = [p / 4 for p in short] + [p / 8 for p in six] + [p / 12 for p in eight] + [p / 4 for p in short]
    torch.testing.assert_close(found, torch.tensor([expected]).cos())


def test_a_pack_is_not_rotated_by_the_length_of_the_pack_before():
    shared = shared_with({"rope_type": "dynamic", "rope_theta": 16.0, "factor": 2.0})
    cosines(shared, [list(range(8))], 1)
    found = cosines(shared, [list(range(6))], 1)
    torch.testing.assert_close(found, torch.tensor([[p / 8 for p in range(6)]]).cos())


def test_decoded_tokens_get_the_angles_of_their_own_row():
    shared = shared_with({"rope_type": "dynamic", "rope_theta": 16.0, "factor": 2.0})
    found = cosines(shared, [[5], [3], [7]], 1)
    torch.testing.assert_close(found[:, 0], torch.tensor([math.cos(5 / 8), math.cos(3 / 4), math.cos(7 / 12)]))


@pytest.mark.parametrize("name", [*LENGTH_DEPENDENT, *FIXED])
def test_packed_logits_equal_a_fresh_model_of_each_sequence_alone(name):
    if name.startswith("gemma3") and Version(transformers.__version__) < Version("5.22"):
        pytest.skip("transformers' own forward of it fails, so that it is refused")
    config = {**LENGTH_DEPENDENT, **FIXED}[name]
    sequences = tokens(*LENGTHS)
    shared = SharedModel(model_of(config))
    check_architecture(shared)
    with torch.no_grad():
        expected = torch.cat([model_of(config)(input_ids=torch.tensor([s])).logits[0] for s in sequences])
        torch.testing.assert_close(logits(shared, sequences), expected, atol=1e-5, rtol=1e-5)
        together = model_of(config)  # the angles matter in this test: a batch of transformers' own differs
        short = together(input_ids=torch.tensor([sequences[0]])).logits[0]
        padded = torch.tensor([sequences[0] + [0] * 14, sequences[1]])
        apart = (together(input_ids=padded).logits[0, :5] - short).abs().max()
    assert bool(apart > 1e-3) == (name in LENGTH_DEPENDENT)


@pytest.mark.parametrize("name", FIXED)
def test_decoding_goes_past_the_threshold_of_ropes_that_do_not_change(name):
    shared = SharedModel(model_of(FIXED[name]))
    assert shared.generation_length == 40
    prompts = tokens(4, 11)
    responses = generate(Policy(shared, None), prompts, Sampling(9, (), 0.0), seeds=[0, 0])
    own = model_of(FIXED[name])
    for prompt, response in zip(prompts, responses, strict=True):
        sequence = list(prompt)
        for _ in range(9):
            sequence.append(int(own(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
        assert response.tokens == sequence[len(prompt) :]


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_responses_are_sampled_up_to_the_threshold_and_refused_beyond(name):
    shared = SharedModel(model_of(LENGTH_DEPENDENT[name]))
    assert shared.generation_length == rope_threshold(shared.base.config) == 8
    prompts = tokens(3, 1)
    [first, second] = generate(Policy(shared, None), prompts, Sampling([5, 7], (), 0.0), seeds=[0, 0])
    own = model_of(LENGTH_DEPENDENT[name])
    for prompt, response in zip(prompts, (first, second), strict=True):
        sequence = list(prompt)
        while len(sequence) < 8:
            sequence.append(int(own(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
        assert response.tokens == sequence[len(prompt) :]
    with pytest.raises(UsageError, match=r"prompt 0 has 3 tokens and the response up to 6; the model's context is 8"):
        generate(Policy(shared, None), prompts, Sampling(6, (), 0.0), seeds=[0, 0])


def written(tmp_path) -> str:
    folder = tmp_path / "phi3"
    model_of(LENGTH_DEPENDENT["phi3 longrope"]).save_pretrained(folder)
    tiny_tokenizer(chat=False).save_pretrained(folder)
    rows = [{"prompt": "w1 w2", "completion": " ".join(["w3"] * n)} for n in (2, 20, 4, 30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_ppo_samples_below_the_threshold_only_and_says_so_before_a_model_is_opened(tmp_path, monkeypatch):
    options = {"sft_model_path": written(tmp_path), "dataset_name": str(tmp_path / "rows.jsonl"), "use_cpu": True}
    monkeypatch.setattr(ppo_run, "build_roles", lambda config: pytest.fail("a model was opened"))
    reward = [(FunctionReward("none", lambda prompts, responses: [0.0] * len(responses)), 1.0)]
    for length, message in ((8, "leaves no room for a prompt: the longest sequence.*has 8 tokens"), (7, "2 tokens")):
        config = PPORunConfig(**options, response_length=length, output_dir=str(tmp_path / str(length)))
        with pytest.raises(UsageError, match=message):
            run_ppo(config, reward)


def test_sft_trains_on_rows_of_both_sides_of_the_threshold(tmp_path):
    config = SFTConfig(
        model_name_or_path=written(tmp_path), dataset_name=str(tmp_path / "rows.jsonl"), use_cpu=True,
        output_dir=str(tmp_path / "sft"), max_length=40, per_device_train_batch_size=4, num_train_epochs=1,
        disable_tqdm=True, dtype="float32",
    )  # fmt: skip
    run_sft(config)
    own, total, count = model_of(LENGTH_DEPENDENT["phi3 longrope"]), 0.0, 0
    for length in (2, 20, 4, 30):  # the mean loss of the completions and their EOS, each row alone
        ids = [*tiny_tokenizer(chat=False)("w1 w2 " + " ".join(["w3"] * length)).input_ids, 2]
        scores = own(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= float(sum(scores[i - 1, ids[i]] for i in range(2, len(ids))).detach())
        count += len(ids) - 2
    assert read_metrics(tmp_path / "sft")[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_a_reward_classifier_reads_each_text_by_its_own_length():
    torch.manual_seed(0)
    config = copy.deepcopy(LENGTH_DEPENDENT["phi3 longrope"])
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    texts = ["w1 w2", " ".join(["w3", "w4"] * 9), "w5 w6 w7"]
    reward = ClassifierReward("r", model, tiny_tokenizer(chat=False))
    found = reward.score(RewardBatch([""] * 3, texts, [[]] * 3))
    with torch.no_grad():
        for text, score in zip(texts, found, strict=True):
            ids = torch.tensor([tiny_tokenizer(chat=False)(text).input_ids])
            assert float(score) == pytest.approx(float(model(input_ids=ids).logits), abs=1e-4)


def test_a_run_says_why_a_model_of_long_context_samples_in_a_short_one(tmp_path, caplog):
    folder = written(tmp_path)
    assert context_of(folder) == 40 and context_of(folder, generated=True) == 8
    _log_once.cache_clear()
    config = GenerateConfig(
        model_path=folder, prompts=["w1 w2 w3"], response_length=6, output_file=str(tmp_path / "out"), use_cpu=True
    )
    with caplog.at_level(logging.WARNING, "rlhf_fast.notices"), pytest.raises(UsageError, match="3 tokens"):
        run_generate(config)
    [record] = [r for r in caplog.records if r.name == "rlhf_fast.notices"]
    assert "phi3 changes beyond 8 tokens" in record.getMessage()
