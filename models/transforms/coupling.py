"""The coupling transform."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.contracts import Bijection, sum_event
from models.transforms.maps import ScalarMap


class Coupling(Bijection):
    """The first half of the channels moves the second: z = [a, f(b; net(a))] for x = [a, b], log-det sum log df/db.

    Dinh et al. 2014 (arXiv:1410.8516), sec. 3. ``scalar_map()`` makes f, ``conditioner(in_channels, out_channels)`` the net,
    called as ``net(a, context)``. With an odd number of channels the second half is the larger. Which channels move is
    the business of the permutation or 1x1 convolution before.
    """

    def __init__(self, channels: int, conditioner: Callable[[int, int], nn.Module], scalar_map: Callable[[], ScalarMap]):
        super().__init__()
        if channels < 2:
            raise ValueError("a coupling needs at least two channels: squeeze first")
        self.kept = channels // 2
        self.scalar_map = scalar_map()
        self.net = conditioner(self.kept, self.scalar_map.num_params * (channels - self.kept))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = x[:, : self.kept], x[:, self.kept :]
        b, log_slope = self.scalar_map(b, self.net(a, context))
        return torch.cat([a, b], 1), sum_event(log_slope)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, b = z[:, : self.kept], z[:, self.kept :]
        b, log_slope = self.scalar_map.inverse(b, self.net(a, context))
        return torch.cat([a, b], 1), sum_event(log_slope)
