"""Distributions whose parameters do not come from a net: bases of flows and priors of latent variables."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.contracts import Conditional
from models.distributions.mixture import GaussianMixture
from models.distributions.normal import DiagonalNormal


class StandardNormal(Conditional):
    """N(0, I) over events of ``shape``, whatever the context."""

    def __init__(self, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("zero", torch.zeros(1, *shape), persistent=False)

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        return DiagonalNormal(self.zero, self.zero)


class LearnedNormal(Conditional):
    """A Gaussian with a free mean and log scale for each element of ``shape``; one such pair a label if ``classes``.

    Starts at N(0, I). The context is the labels [B]; a class-conditional one raises ValueError without them.
    """

    def __init__(self, shape: Sequence[int], classes: int | None = None):
        super().__init__()
        self.classes = classes
        self.mean = nn.Parameter(torch.zeros(classes or 1, *shape))
        self.log_scale = nn.Parameter(torch.zeros(classes or 1, *shape))

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        if self.classes is None:
            return DiagonalNormal(self.mean, self.log_scale)
        if context is None:
            raise ValueError("this distribution is class-conditional: give it labels y")
        return DiagonalNormal(self.mean[context], self.log_scale[context])


class LearnedMixture(Conditional):
    """A free mixture of ``components`` factorised Gaussians over vectors of ``shape`` [D].

    Means start as draws of N(0, I), which sets the components apart; scales and weights start equal.
    """

    def __init__(self, shape: Sequence[int], components: int):
        super().__init__()
        if len(shape) != 1:
            raise ValueError(f"a mixture is over vectors; got shape {tuple(shape)}")
        self.logits = nn.Parameter(torch.zeros(1, components))
        self.mean = nn.Parameter(torch.randn(1, components, *shape))
        self.log_scale = nn.Parameter(torch.zeros(1, components, *shape))

    def forward(self, context: Tensor | None = None) -> GaussianMixture:
        return GaussianMixture(self.logits, self.mean, self.log_scale)
