"""Random Llama models of the shapes that are measured, made on the device, with the roles of a PPO run on them, and a
PPO run over such a model that needs no files."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from rlhf_fast.data.prompts import Prompts
from rlhf_fast.model.batches import MicroBatches
from rlhf_fast.model.fused_blocks import join_weights
from rlhf_fast.model.roles import Policy, adapter_critic
from rlhf_fast.model.shared import SharedModel
from rlhf_fast.rewards.classifier import AdapterReward
from rlhf_fast.rewards.source import WeightedRewards
from rlhf_fast.train.config import PPORunConfig
from rlhf_fast.train.ppo import PPO

CONTEXT = 1 << 17


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; heads of 64 entries up to a hidden size of 2048, of 128 above."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden, num_hidden_layers=self.layers, num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads, intermediate_size=self.intermediate, vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied, max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip

    @property
    def layer_weights(self) -> int:
        """Entries of the linear layers of all decoder layers."""
        head = self.hidden // self.heads
        attention = self.hidden * head * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


SHAPES = {
    "1B": Shape(2048, 16, 32, 8, 8192, 128256, True),
    "8B": Shape(4096, 32, 32, 8, 14336, 128256, False),
    "small": Shape(512, 8, 8, 4, 1536, 16384, True),  # of `rlhf-fast bench`
    "toy": Shape(64, 2, 4, 2, 96, 512, True),  # of a dry run
}


def shared_model(
    name: str, device: torch.device, *adapters: str, r: int = 16, dtype: torch.dtype | None = None
) -> SharedModel:
    """A random model in `dtype` (default: bfloat16, float32 on a CPU) with LoRA adapters on every linear layer;
    one that is called critic or reward has a head. B is not 0, so that the adapters count."""
    torch.manual_seed(0)
    with torch.device(device):
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        shared = SharedModel(AutoModelForCausalLM.from_config(SHAPES[name].config, dtype=dtype))
        join_weights(shared.base)
        for adapter in adapters:
            config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear")
            shared.add_adapter(adapter, config, head=adapter in ("critic", "reward"))
            for parameter in shared.parameters(adapter):
                torch.nn.init.normal_(parameter, std=0.01)
    return shared


def build_ppo(shared: SharedModel, folder: str, *, rows: int, prompt: int, new: int) -> PPO:
    """Policy, reference, critic and reward model on one base; `rows` prompts of `prompt` tokens, `new` sampled to each,
    one PPO epoch in one minibatch."""
    config = PPORunConfig(
        output_dir=folder, per_device_train_batch_size=rows, response_length=new, total_episodes=4 * rows,
        num_ppo_epochs=1, num_mini_batches=1, use_cpu=shared.device.type == "cpu", max_rollout_batch=rows,
        max_tokens_per_micro_batch=4096, temperature=1.0, max_length=prompt + new,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    vocabulary = shared.base.config.vocab_size
    ids = torch.randint(3, vocabulary, (rows, prompt), generator=generator).tolist()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocabulary)}, unk_token="w0")),
        eos_token="w2", pad_token="w2",
    )  # fmt: skip
    reward = AdapterReward("reward", adapter_critic(shared, "reward"), MicroBatches.of(config))
    return PPO(
        config, Policy(shared, "policy"), Policy(shared, None), adapter_critic(shared, "critic"),
        WeightedRewards([(reward, 1.0)]), tokenizer, Prompts(ids, ["text"] * rows), starts_as_reference=False,
    )  # fmt: skip
