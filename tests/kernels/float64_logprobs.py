"""Log-probs in float64, row by row, and inputs to compare on."""

from __future__ import annotations

import numpy as np
import torch


def log_softmax_rows(hidden, weight, *, bias=None, temperature=1.0, softcap=None):
    """All log-probs (N, V) in float64, one row at a time."""
    rows = []
    for h in hidden.detach().double().numpy():
        z = weight.detach().double().numpy() @ h
        if bias is not None:
            z = z + bias.detach().double().numpy()
        if softcap is not None:
            z = softcap * np.tanh(z / softcap)
        z = z / temperature
        rows.append(z - z.max() - np.log(np.exp(z - z.max()).sum()))
    return np.array(rows).reshape(len(hidden), len(weight))


def example(rows=7, hidden_size=12, vocabulary=37, *, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, hidden_size, generator=g).to(dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=g).to(dtype)
    return hidden, weight, torch.randint(vocabulary, (rows,), generator=g)
