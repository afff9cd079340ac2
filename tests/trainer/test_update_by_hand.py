"""A whole update, from a recorded rollout to the new weights, against the formulas of TRL in float64.

Each sequence goes alone through transformers' own forward; log-probs, KL, rewards, GAE, whitening, losses and the
steps of plain gradient descent are written out.
"""

from __future__ import annotations

import copy

import torch

from rlhf_fast import Rollout
from tests.model_cases import tiny_model, tokens
from tests.trainer.cases import classifier, policy, trainer

PROMPTS = tokens(3, 6, 2, 5)
RESPONSES = [[7, 9, 2], [11, 12, 13, 14, 15, 16], [2], [21, 22, 23, 24, 25, 2]]  # 2 is EOS
FINISHED = [True, False, True, True]
SCORES = [1.0, -0.5, 0.25, 2.0]
BUDGET, TEMPERATURE, BETA, GAMMA, LAM, CLIP, VF, PENALTY, RATE, EPOCHS = 6, 0.8, 0.3, 0.9, 0.8, 0.2, 0.1, 0.5, 0.05, 3


def read(model, value, prompt, response):
    """Log-probs (n,) of the response's tokens and values of its slots: one more where it is shorter than the budget."""
    ids, first, n = torch.tensor([prompt + response]), len(prompt) - 1, len(response)
    logits = model(ids).logits[0, first : first + n] / (TEMPERATURE + 1e-7)
    states = value.model(ids).last_hidden_state[0, first : first + n + (n < BUDGET)]
    return logits.log_softmax(-1)[torch.arange(n), torch.tensor(response)], value.score(states)[:, 0]


def advantages_of(rewards, values):
    out, following = [], 0.0
    for t in reversed(range(len(values))):
        beyond = float(values[t + 1]) if t + 1 < len(values) else 0.0
        following = float(rewards[t]) + GAMMA * beyond - float(values[t]) + GAMMA * LAM * following
        out.insert(0, following)
    return torch.tensor(out, dtype=torch.float64)


def by_hand(model, reference, value):
    """Train `model` and `value` in place; returns the columns before the update, over all slots in order."""
    model, reference, value = (m.double() for m in (model, reference, value))
    columns = {name: [] for name in ("kl", "values", "rewards", "returns", "advantages")}
    old = []
    with torch.no_grad():
        for prompt, response, finished, score in zip(PROMPTS, RESPONSES, FINISHED, SCORES, strict=True):
            logprobs, values = read(model, value, prompt, response)
            kl = torch.zeros_like(values)
            kl[: len(response)] = logprobs - read(reference, value, prompt, response)[0]
            rewards = -BETA * kl
            rewards[-1] += score - (0.0 if finished else PENALTY)
            advantages = advantages_of(rewards, values)
            found = {"kl": kl, "values": values, "rewards": rewards, "returns": advantages + values}
            for name, column in (found | {"advantages": advantages}).items():
                columns[name].append(column)
            old.append(logprobs)
    taken = [a[: len(r)] for a, r in zip(columns["advantages"], RESPONSES, strict=True)]
    flat = torch.cat(taken)
    whitened = [(a - flat.mean()) / (flat.var() + 1e-8).sqrt() for a in taken]
    for _ in range(EPOCHS):
        step(model, value, old, whitened, columns)
    return {name: torch.cat(parts) for name, parts in (columns | {"advantages": whitened}).items()}


def step(model, value, old, whitened, columns):
    policy_terms, value_terms = [], []
    for b, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        logprobs, values = read(model, value, prompt, response)
        ratio, before, target = (logprobs - old[b]).exp(), columns["values"][b], columns["returns"][b]
        near = values.clamp(before - CLIP, before + CLIP)
        policy_terms.append(torch.max(-whitened[b] * ratio, -whitened[b] * ratio.clamp(1 - CLIP, 1 + CLIP)))
        value_terms.append(0.5 * torch.max((values - target) ** 2, (near - target) ** 2))
    loss = torch.cat(policy_terms).mean() + VF * torch.cat(value_terms).mean()
    parameters = [*model.parameters(), *value.parameters()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.data -= RATE * gradient


def test_columns_and_weights_of_an_update_are_those_computed_by_hand(tmp_path):
    models = policy(), tiny_model(seed=1), classifier(seed=5)
    model, reference, value = map(copy.deepcopy, models)
    expected = by_hand(model, reference, value)
    options = {
        "num_ppo_epochs": EPOCHS, "kl_coef": BETA, "gamma": GAMMA, "lam": LAM, "temperature": TEMPERATURE,
        "missing_eos_penalty": PENALTY, "stop_token": "eos", "max_grad_norm": 0.0, "response_length": BUDGET,
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    before = [parameter.detach().clone() for parameter in (*models[0].parameters(), *models[2].parameters())]
    trained = [*models[0].parameters(), *models[2].parameters()]
    made = trainer(
        tmp_path, model=models[0], ref_model=models[1], value_model=models[2], peft_config=None, options=options,
        optimizers=(torch.optim.SGD(trained, lr=RATE), None),
    )  # fmt: skip
    rollout = Rollout.from_responses(PROMPTS, RESPONSES, finished=FINISHED, budget=BUDGET, score_at=made.args.score_at)
    made.update(rollout, scores=SCORES)
    for name, column in expected.items():
        ours = getattr(rollout, name)[rollout.action_mask] if name == "advantages" else getattr(rollout, name)
        torch.testing.assert_close(ours.double(), column, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    moved = max(float((p - b).abs().max()) for p, b in zip(trained, before, strict=True))
    assert moved > 1e-2
    for own, hand in zip(trained, (*model.parameters(), *value.parameters()), strict=True):
        torch.testing.assert_close(own.double(), hand.double(), atol=1e-4 * moved, rtol=1e-4)
