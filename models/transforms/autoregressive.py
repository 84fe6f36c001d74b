"""Autoregressive bijections: masked (MAF, fast from data to base) and inverse (IAF, fast from base to data)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.nn.masked import MADE, Walk
from models.transforms.maps import ScalarMap


class MaskedAutoregressive(Bijection):
    """z_d = f(x_d; net(x_<d, context)), log |det dz/dx| = sum_d log f'(x_d), over vectors [B, D].

    Forward (data -> base) is one pass of a MADE and the inverse goes number by number, each hidden unit computed once: the
    masked autoregressive flow (Papamakarios et al. 2017, arXiv:1705.07057), cheap where densities of given points are
    needed: data and priors.
    ``scalar_map()`` makes f; ``context_dim`` 0 means no context. The net's last layer starts at zero.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        hidden: Sequence[int],
        activation: Callable[[], nn.Module],
        scalar_map: Callable[[], ScalarMap],
    ):
        super().__init__()
        self.scalar_map = scalar_map()
        self.net = MADE(range(dim), hidden, self.scalar_map.num_params, context_dim, activation)
        nn.init.zeros_(self.net.last.weight)
        nn.init.zeros_(self.net.last.bias)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_slope = self.scalar_map(x, self.net(x, context).flatten(1))
        return z, log_slope.sum(1)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        walk, x, log_slopes = Walk(self.net, len(z), context), [], []
        for place, value in enumerate(z.split(1, 1)):
            value, log_slope = self.scalar_map.inverse(value, walk.step(place, x[-1] if x else None))
            x.append(value)
            log_slopes.append(log_slope)
        return torch.cat(x, 1), torch.cat(log_slopes, 1).sum(1)


class InverseAutoregressive(MaskedAutoregressive):
    """The same step read backwards: x_d = f(z_d; net(z_<d, context)).

    The inverse (base -> data) is one pass and forward goes number by number: the inverse autoregressive flow (Kingma et al. 2016,
    arXiv:1606.04934), cheap where draws and the density of those draws are needed: posteriors.
    """

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().inverse_and_log_det(x, context)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(z, context)
