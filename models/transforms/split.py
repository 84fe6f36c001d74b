"""Factoring out half the channels, so that later levels work on less."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.contracts import Conditional
from models.distributions.normal import DiagonalNormal
from models.transforms.conditioners import ZeroConv2d
from models.transforms.surjection import Surjection


class ConvNormal(Conditional):
    """N(mean(a), scale(a)^2) over [B, out, H, W], both a ZeroConv2d of a [B, in, H, W]: standard normal at the start.

    The released code's split prior (Glow, model.py, split2d_prior).
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.net = ZeroConv2d(in_channels, 2 * out_channels)

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        return DiagonalNormal(*self.net(context).chunk(2, dim=1))


class UnitNormal(Conditional):
    """N(0, I) over [B, out, H, W] whatever a [B, in, H, W] is: RealNVP's prior of what it factors out."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.out_channels = out_channels

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        zero = context.new_zeros(context.shape[0], self.out_channels, *context.shape[2:])
        return DiagonalNormal(zero, zero)


class Split(Surjection):
    """x = [a, b] -> a, contribution log p(b | a) (Dinh et al. 2016, arXiv:1605.08803, sec. 3.6; learned p as in Glow's code).

    b is the last ``dropped`` channels (None: half of them, rounded up), scored at once instead of by the base.
    ``prior(in_channels, out_channels)`` makes the Conditional p(b | a), a DiagonalNormal. The residual is that of b,
    (b - mean(a)) / scale(a), which is standard normal under the model whatever a is; so a path between two residuals, or
    residuals times a temperature, stay typical when a changes too.
    """

    term = "split"

    def __init__(self, channels: int, prior: Callable[[int, int], Conditional], dropped: int | None = None):
        super().__init__()
        if channels < 2:
            raise ValueError("a split needs at least two channels: squeeze first")
        if dropped is not None and not 1 <= dropped < channels:
            raise ValueError(f"dropped must be at least 1 and leave one of {channels} channels; got {dropped}")
        self.kept = channels // 2 if dropped is None else channels - dropped
        self.prior = prior(self.kept, channels - self.kept)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        return a, self.prior(a).log_prob(b)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        return a, self.prior(a).standardize(b)

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        prior = self.prior(z)
        b = prior.rsample(len(z), temperature) if residual is None else prior.place(residual)
        return torch.cat([z, b], 1)
