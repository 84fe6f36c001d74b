"""Noise whose distribution depends on an image: what variational dequantizations draw."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.contracts import Bijection
from models.distributions.logistic import StandardLogistic


class ConditionalNoise(nn.Module):
    """u = f(eps; c), eps standard logistic, with context c = encoder(x): log q(u | x) = log p(eps) - log |det du/deps|.

    ``architecture(shape of u)`` makes the bijections of f, run forwards, so that a draw needs no inverse; ``encoder(in_channels)``
    the net that the couplings' nets see. ValueError if the architecture leaves another shape. Ho et al. 2019
    (arXiv:1902.00275), sec. 3.1. Deviation: eps is Gaussian there. Squashed to [0, 1], or folded at a threshold, Gaussian noise
    leaves the ends so empty that the weights p / q have infinite variance; with a logistic, q is uniform where f is the identity.
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
        self.base, self.bijections = StandardLogistic(shape), nn.ModuleList(bijections)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(u [B, *shape], log q(u | x) [B]) for images x [B, C, H, W] of reals about 0."""
        context, (u, log_prob) = self.encoder(x), self.base().rsample_and_log_prob(len(x))
        for bijection in self.bijections:
            u, log_det = bijection(u, context)
            log_prob = log_prob - log_det
        return u, log_prob
