"""The coupling transform."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from models.contracts import Bijection, sum_event
from models.transforms.folding import Foldable, Folded
from models.transforms.maps import ScalarMap
from models.transforms.partitions import ChannelHalves, Partition


class Coupling(Bijection, Foldable):
    """One half of x moves the other: z = [a, f(b; net(a))] for x = [a, b], log-det sum log df/db.

    Dinh et al. 2014 (arXiv:1410.8516), sec. 3. ``partition(channels)`` says what is a and what is b: without it, the first and
    the second half of the channels. ``scalar_map()`` makes f, ``conditioner(in_channels, out_channels)`` the net, called as
    ``net(a, context)``.
    """

    def __init__(
        self,
        channels: int,
        conditioner: Callable[[int, int], nn.Module],
        scalar_map: Callable[[], ScalarMap],
        partition: Callable[[int], Partition] = ChannelHalves,
    ):
        super().__init__()
        self.partition = partition(channels)
        self.scalar_map = scalar_map()
        self.net = conditioner(self.partition.seen_channels, self.scalar_map.num_params * self.partition.moved_channels)

    def likeness(self) -> Hashable | None:
        """That of the net, which is all that folds."""
        return self.net.likeness() if isinstance(self.net, Foldable) else None

    @staticmethod
    def fold(parts: Sequence[Coupling]) -> list[Folded]:
        return parts[0].net.fold([part.net for part in parts])

    def _params(self, a: Tensor, context: Tensor | None, folded: Folded | None = None) -> Tensor:
        """Of the scalar map, for what moves."""
        return self.partition.select(self.net(a, context) if folded is None else self.net(a, context, folded))

    def forward(self, x: Tensor, context: Tensor | None = None, folded: Folded | None = None) -> tuple[Tensor, Tensor]:
        a, b = self.partition.split(x)
        b, log_slope = self.scalar_map(b, self._params(a, context, folded))
        return self.partition.join(a, b), sum_event(log_slope)

    def inverse_and_log_det(self, z: Tensor, context: Tensor | None = None, folded: Folded | None = None) -> tuple[Tensor, Tensor]:
        a, b = self.partition.split(z)
        b, log_slope = self.scalar_map.inverse(b, self._params(a, context, folded))
        return self.partition.join(a, b), sum_event(log_slope)

    def retrace(self, z: Tensor, context: Tensor | None = None, *folded) -> tuple[Tensor, Tensor, Tensor]:
        """As in every bijection, in one pass of the net: both directions see the same half."""
        x = z.detach().clone().requires_grad_()
        a, _ = self.partition.split(x)
        params = self._params(a, context, *folded[:1])
        with torch.no_grad():
            _, b = self.partition.split(z)
            x.data = self.partition.join(a, self.scalar_map.inverse(b, params)[0])  # the moved half, which the net has not seen
        _, b = self.partition.split(x)
        b, log_slope = self.scalar_map(b, params)
        return x, self.partition.join(a, b), sum_event(log_slope)
