"""Noise for sampling from heads; drawn from torch's global generator."""

import torch
from torch import Tensor


def gumbel_like(t: Tensor) -> Tensor:
    """Standard Gumbel draws: argmax(logits + T gumbel) is a draw from softmax(logits / T), and the mode at T = 0."""
    return -torch.empty_like(t).exponential_().clamp_min(torch.finfo(t.dtype).tiny).log()


def logistic_like(t: Tensor) -> Tensor:
    """Standard logistic draws: a difference of two Gumbels, hence with accurate tails on both sides."""
    return gumbel_like(t) - gumbel_like(t)
