"""What follows from the device: precision of float32, and the defaults of sizes."""

from __future__ import annotations

import pytest
import torch

from rlhf_fast.evaluate.config import EvaluateConfig
from rlhf_fast.runtime.device import choose_dtype, describe_sizes, float32_is_exact
from rlhf_fast.train.config import PPORunConfig, SFTConfig

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def precision():
    """Puts torch's setting back, which is the process's."""
    yield
    torch.set_float32_matmul_precision("highest")


def by_its_old_name():
    torch.set_float32_matmul_precision("high")


def by_its_new_name():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize("allow", [by_its_old_name, by_its_new_name])
def test_a_run_on_a_gpu_forbids_tf32_and_says_so_once(allow, precision, caplog):
    if allow is by_its_new_name and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has the old name only")
    allow()
    assert not float32_is_exact(CUDA) and float32_is_exact(CPU)
    with caplog.at_level("INFO", "rlhf_fast.notices"):
        choose_dtype("float32", CPU)
        assert not float32_is_exact(CUDA) and not caplog.messages
        assert choose_dtype("float32", CUDA) == torch.float32
        choose_dtype("bfloat16", CUDA)
    assert float32_is_exact(CUDA)
    assert caplog.messages == ["products of float32 were allowed to be in TF32, and are in float32 from now on"]


def test_sizes_that_are_left_out_follow_the_device(monkeypatch):
    assert SFTConfig().max_tokens_per_micro_batch == 1024
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    ppo, evaluate = PPORunConfig(), EvaluateConfig()
    assert (ppo.max_tokens_per_micro_batch, ppo.max_rollout_batch) == (4096, 256)
    assert (evaluate.max_tokens_per_micro_batch, evaluate.max_rollout_batch) == (16384, 256)
    ppo, evaluate = PPORunConfig(use_cpu=True), EvaluateConfig(use_cpu=True)
    assert (ppo.max_tokens_per_micro_batch, ppo.max_rollout_batch) == (1024, 32)
    assert (evaluate.max_tokens_per_micro_batch, evaluate.max_rollout_batch) == (2048, 32)
    ppo = PPORunConfig(max_tokens_per_micro_batch=77, max_rollout_batch=5)
    assert (ppo.max_tokens_per_micro_batch, ppo.max_rollout_batch) == (77, 5)


def test_sizes_in_words():
    words = describe_sizes(4096, recompute=True, attention="flash", responses=1256)
    assert words == (
        "micro-batches of 4,096 tokens, up to 1,256 responses at a time, activations computed again in backward, "
        "flash attention"
    )
    words = describe_sizes(8, recompute=False, attention=None)
    assert words == "micro-batches of 8 tokens, attention in torch, a sequence at a time"
