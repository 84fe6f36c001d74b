"""Draws from the likeliest levels only."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Likelihood
from models.likelihoods.noise import gumbel_like


def sample_nucleus(head: Likelihood, params: Tensor, num_channels: int, temperature: float, top_p: float) -> Tensor:
    """One draw for each pixel, uint8 [B, num_channels, H, W], every channel from the fewest levels that hold ``top_p`` of its mass.

    Source: Holtzman et al. 2019, arXiv:1904.09751, section 3.1. Raises ValueError for a density or a temperature of 0.
    """
    if head.spec.levels is None or temperature <= 0:
        raise ValueError("top_p needs data with levels and a temperature above 0")
    x = torch.zeros(len(params), num_channels, *params.shape[2:], dtype=torch.uint8, device=params.device)
    for channel in range(num_channels):
        log_pmf = head.log_pmf(params, x, channel, temperature)
        ordered, levels = log_pmf.sort(1, descending=True)
        before = ordered.exp().cumsum(1) - ordered.exp()
        kept = ordered.masked_fill(before >= top_p, -torch.inf)
        kept[:, 0] = ordered[:, 0]
        chosen = (kept + gumbel_like(kept)).argmax(1, keepdim=True)
        x[:, channel] = levels.gather(1, chosen).squeeze(1)
    return x
