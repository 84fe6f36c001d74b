"""Noise whose distribution depends on an image: what variational dequantizations draw."""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

import torch
from torch import Tensor, nn

from models.contracts import Bijection, sum_event


class ConditionalNoise(nn.Module):
    """u = f(eps; c), eps ~ N(0, I), with context c = encoder(x): log q(u | x) = log N(eps) - log |det du/deps|.

    ``architecture(shape of u)`` makes the bijections of f, run forwards, so that a draw needs no inverse; ``encoder(in_channels)``
    the net that the couplings' nets see. ValueError if the architecture leaves another shape. Ho et al. 2019
    (arXiv:1902.00275), sec. 3.1.
    """

    def __init__(
        self,
        image_channels: int,
        shape: tuple[int, int, int],
        encoder: Callable[[int], nn.Module],
        architecture: Callable[[tuple[int, int, int]], tuple[list[Bijection], tuple[int, ...]]],
    ):
        super().__init__()
        self.encoder = encoder(image_channels)
        bijections, left = architecture(shape)
        if tuple(left) != tuple(shape):
            raise ValueError(f"the noise of a dequantization keeps its shape: {shape} became {left}; use one level")
        self.shape, self.bijections = tuple(shape), nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(u [B, *shape], log q(u | x) [B]) for images x [B, C, H, W] of reals about 0."""
        context = self.encoder(x)
        u = torch.randn(len(x), *self.shape, dtype=x.dtype, device=x.device)
        log_prob = sum_event(-0.5 * (u * u + log(2 * pi)))
        for bijection in self.bijections:
            u, log_det = bijection(u, context)
            log_prob = log_prob - log_det
        return u, log_prob
