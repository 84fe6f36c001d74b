"""Funnels: fewer dimensions, by a map that depends on those it drops."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import Conditional
from models.distributions.normal import DiagonalNormal
from models.transforms.coupling import Coupling
from models.transforms.maps import ScalarMap
from models.transforms.partitions import Partition
from models.transforms.split import Split


class Last(Partition):
    """The last ``dropped`` channels are seen and the others move."""

    def __init__(self, channels: int, dropped: int):
        self.moved_channels, self.seen_channels = channels - dropped, dropped

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moved, seen = x.split([self.moved_channels, self.seen_channels], 1)
        return seen, moved

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, seen], 1)


class NetNormal(Conditional):
    """N(mean(a), scale(a)^2) over [B, out, ...], mean and log scale ``conditioner(in, 2 out)`` of a [B, in, ...].

    Log scales are kept within ``bound`` by bound * tanh(. / bound).
    """

    def __init__(self, in_channels: int, out_channels: int, conditioner: Callable[[int, int], nn.Module], bound: float):
        super().__init__()
        self.net, self.bound = conditioner(in_channels, 2 * out_channels), bound

    def forward(self, context: Tensor | None = None) -> DiagonalNormal:
        mean, log_scale = self.net(context).chunk(2, 1)
        return DiagonalNormal(mean, self.bound * torch.tanh(log_scale / self.bound))


class Funnel(Split):
    """x = [a, b] -> z = f(a; net(b)) without b, contribution sum log df/da + log p(b | z): a coupling, then a split.

    Klein et al. 2021, arXiv:2112.08069, sec. 2. b is the last ``dropped`` of the channels, f the ``scalar_map`` and p the
    ``prior``, which sees z. The residual is that of b under p. ValueError where ``dropped`` leaves nothing.
    """

    term = "funnel"

    def __init__(
        self,
        channels: int,
        dropped: int,
        conditioner: Callable[[int, int], nn.Module],
        scalar_map: Callable[[], ScalarMap],
        prior: Callable[[int, int], Conditional],
    ):
        super().__init__(channels, prior, dropped)
        self.coupling = Coupling(channels, conditioner, scalar_map, partial(Last, dropped=dropped))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h, log_det = self.coupling(x, context)
        z, contribution = super().forward(h)
        return z, log_det + contribution

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(self.coupling(x)[0])

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        return self.coupling.inverse(super().decode(z, residual, temperature))


class ConvFunnel(Funnel):
    """A funnel of each 2x2 block: the upper left pixel moves by what the other three are, which are then dropped.

    [B, C, H, W] -> [B, C, H/2, W/2]: the released code's convolution of stride 2 by an invertible net, of which this is a form
    whose nets also see the blocks beside.
    """

    def __init__(
        self,
        channels: int,
        conditioner: Callable[[int, int], nn.Module],
        scalar_map: Callable[[], ScalarMap],
        prior: Callable[[int, int], Conditional],
    ):
        super().__init__(4 * channels, 3 * channels, conditioner, scalar_map, prior)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(_blocks(x), context)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().encode(_blocks(x))

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        x = super().decode(z, residual, temperature).unflatten(1, (4, -1)).transpose(1, 2)
        return F.pixel_shuffle(x.flatten(1, 2), 2)


def _blocks(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, 4C, H/2, W/2]: C channels of upper left pixels, then those of the three others."""
    return F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)
