"""One kernel inside somebody else's training loop: the policy loss of GRPO on a transformers model.

    python examples/kernels_in_your_trainer.py

The loop, the model and the optimiser stay as they are. Only the lines from logits to log-probs change: the model's body
gives hidden states, the prompt's positions are dropped, and `linear_logprobs` takes the head's weight, so that the
(tokens, vocabulary) logits never exist. Prints both losses, which agree, and what each kept in memory for them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_kernels import linear_logprobs

PROMPT, RESPONSE, SAMPLES = 24, 40, 8


def logprobs_before(model, tokens: Tensor) -> Tensor:
    """(SAMPLES, RESPONSE) as many trainers compute them: all logits, then one of each row's V is kept."""
    logits = model(tokens).logits[:, PROMPT - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, PROMPT:, None]).squeeze(-1)


def logprobs_after(model, tokens: Tensor) -> Tensor:
    """The same from hidden states."""
    hidden = model.model(tokens).last_hidden_state[:, PROMPT - 1 : -1]
    rows = hidden.reshape(-1, hidden.shape[-1])
    labels = tokens[:, PROMPT:].reshape(-1)
    return linear_logprobs(rows, model.lm_head.weight, labels).logprobs.view(SAMPLES, RESPONSE)


def loss_of(logprobs: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    ratio = (logprobs - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages).mean()


def main() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=32_000, **sizes))
    model.lm_head.weight.requires_grad_(False)  # as under LoRA: the gradient then comes with the forward pass
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    tokens = torch.randint(32_000, (SAMPLES, PROMPT + RESPONSE))
    advantages = torch.randn(SAMPLES, 1)
    with torch.no_grad():
        old = logprobs_before(model, tokens)
    for step in range(3):
        losses = {}
        for name, logprobs in (("logits", logprobs_before), ("linear_logprobs", logprobs_after)):
            kept: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x):
                loss = loss_of(logprobs(model, tokens), old, advantages)
            losses[name] = float(loss.detach())
            print(f"step {step}  {name:<16} loss {losses[name]:+.6f}  kept for backward {sum(kept) / 2**20:6.1f} MiB")
        assert abs(losses["logits"] - losses["linear_logprobs"]) < 1e-5
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


if __name__ == "__main__":
    main()
