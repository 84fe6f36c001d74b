"""The scales of RealNVP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from models.contracts import Bijection, Transform
from models.flow.scales import two_sided_scales
from models.transforms.coupling import Coupling
from models.transforms.maps import ScalarMap
from models.transforms.partitions import ChannelHalves, Checkerboard, Partition
from models.transforms.sequence import Sequential
from models.transforms.split import Split


class DiagonalsFirst(Bijection):
    """Squeezed channels (c, row, column) in the order 00, 11, 01, 10 of (row, column), c running within each; log-det 0.

    So a split keeps the diagonal of each 2x2 block of every channel, not all of some channels (squeeze_2x2_ordered of the
    released code, real_nvp_utils.py).
    """

    def __init__(self, channels: int):
        super().__init__()
        order = torch.arange(channels).view(-1, 4)[:, [0, 3, 1, 2]].T.flatten()
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("back", order.argsort(), persistent=False)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(x.shape[0])

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z[:, self.back], z.new_zeros(z.shape[0])


class RealNVPScales:
    """Each scale: ``num_couplings`` over checkerboards, a squeeze, as many over channel halves, a split. The last scale:
    ``num_last`` over checkerboards. Masks alternate.

    Dinh et al. 2016 (arXiv:1605.08803), sec. 3.6: 3 and 4. A coupling's net is ``conditioner(in_channels, out_channels,
    width=...)``, whose width starts at ``width`` and doubles with each squeeze, and ``norm(channels)`` follows each coupling.
    """

    def __init__(
        self,
        num_scales: int,
        num_couplings: int,
        num_last: int,
        width: int,
        conditioner: Callable[..., nn.Module],
        scalar_map: Callable[[], ScalarMap],
        norm: Callable[[int], Bijection],
        split: Callable[[int], Split],
    ):
        self.num_scales, self.num_couplings, self.num_last, self.width = num_scales, num_couplings, num_last, width
        self.conditioner, self.scalar_map, self.norm, self.split = conditioner, scalar_map, norm, split

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Transform], tuple[int, int, int]]:
        """(transforms, shape of what is left) for images of ``shape``; ValueError if they cannot be halved so often."""
        transforms, left = two_sided_scales(shape, self.num_scales, self._before, self._after, self.split)
        last = self._couplings(self.num_last, left[0], Checkerboard, self.width * 2 ** (self.num_scales - 1))
        return [*transforms, Sequential(last)], left

    def _before(self, scale: int, shape: tuple[int, int, int]) -> list[Bijection]:
        return self._couplings(self.num_couplings, shape[0], Checkerboard, self.width * 2**scale)

    def _after(self, scale: int, shape: tuple[int, int, int]) -> list[Bijection]:
        couplings = self._couplings(self.num_couplings, shape[0], ChannelHalves, self.width * 2 ** (scale + 1))
        return [*couplings, DiagonalsFirst(shape[0])]

    def _couplings(self, count: int, channels: int, kind: Callable[..., Partition], width: int) -> list[Bijection]:
        conditioner = partial(self.conditioner, width=width)
        parts: list[Bijection] = []
        for i in range(count):
            parts += [Coupling(channels, conditioner, self.scalar_map, partial(kind, flip=i % 2 == 1)), self.norm(channels)]
        return parts
