"""The couplings of Flow++."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from torch import nn

from models.contracts import Bijection
from models.transforms.coupling import Coupling
from models.transforms.maps import ScalarMap
from models.transforms.partitions import ChannelHalves, Partition
from models.transforms.sequence import Sequential
from models.transforms.squeeze import Squeeze
from models.transforms.stripes import Stripes


class CouplingLevels:
    """A squeeze between levels; on each, so many couplings over channel halves and then so many over column stripes.

    ``num_couplings`` has a pair of numbers for each level. The halves of a partition take turns, and nothing is factored out.
    Before each coupling come the named parts of ``before``, each made by ``factory(channels)`` (null: none). A coupling's net is
    ``conditioner(in_channels, out_channels, shape=...)`` and gets the context. Flow++, Ho et al. 2019 (arXiv:1902.00275),
    and its released code, whose CIFAR-10 flow is [[0, 4], [2, 3]]. Deviation: there each half of the input has
    normalisations and 1x1 convolutions of its own, and normalisations one scale a position.
    """

    def __init__(
        self,
        num_couplings: Sequence[Sequence[int]],
        before: dict[str, Callable[[int], Bijection] | None],
        conditioner: Callable[..., nn.Module],
        scalar_map: Callable[[], ScalarMap],
    ):
        self.num_couplings = [tuple(pair) for pair in num_couplings]
        self.before = [make for make in before.values() if make is not None]
        self.conditioner, self.scalar_map = conditioner, scalar_map

    def __call__(self, shape: tuple[int, int, int]) -> tuple[list[Bijection], tuple[int, int, int]]:
        """(transforms, shape of what is left) for images of ``shape``; ValueError if they cannot be halved so often."""
        channels, height, width = shape
        parts: list[Bijection] = []
        for level, (over_channels, over_stripes) in enumerate(self.num_couplings):
            if level and (height % 2 or width % 2):
                raise ValueError(
                    f"num_couplings has {len(self.num_couplings)} levels and halves the sides between them, which "
                    f"{tuple(shape)} images allow {level - 1} times: keep {level} levels, or choose data that halve more often"
                )
            if level:
                parts.append(Squeeze())
                channels, height, width = 4 * channels, height // 2, width // 2
            if over_stripes and width % 2:
                raise ValueError(
                    f"couplings over column stripes need an even width; on level {level} of {tuple(shape)} images it is {width}: "
                    "set the second number of that level in num_couplings to 0"
                )
            parts += self._couplings(over_channels, channels, ChannelHalves, (height, width))
            parts += self._couplings(over_stripes, channels, Stripes, (height, width // 2))
        return [Sequential(parts)], (channels, height, width)

    def _couplings(self, count: int, channels: int, kind: Callable[..., Partition], shape: tuple[int, int]) -> Iterator[Bijection]:
        for i in range(count):
            yield from (make(channels) for make in self.before)
            conditioner = partial(self.conditioner, shape=shape)
            yield Coupling(channels, conditioner, self.scalar_map, partial(kind, flip=i % 2 == 1))
