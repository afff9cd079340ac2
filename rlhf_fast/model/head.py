"""Scalar heads: hidden state -> one number (the value of a critic, the score of a reward model)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """y = h . w + b in fp32; starts at zero, so a fresh critic predicts 0 and a fresh reward model prefers nothing."""

    def __init__(self, hidden_size: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=torch.float32, device=device))
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float32, device=device))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) of any float dtype -> (...) f32."""
        return hidden.float() @ self.weight + self.bias

    @torch.no_grad()
    def normalise_(self, mean: float, std: float) -> None:
        """Change the head in place so that y becomes (y - mean) / std."""
        self.weight.div_(std)
        self.bias.copy_((self.bias - mean) / std)


class ScoreHead(nn.Module):
    """The `score` of a sequence classifier, a module that gives one number for each state by itself."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, H) of any float dtype -> (R,) f32. The module reads (1, R, H), as transformers calls it."""
        dtype = next((parameter.dtype for parameter in self.layer.parameters()), hidden.dtype)
        return self.layer(hidden[None].to(dtype))[0, :, 0].float()
