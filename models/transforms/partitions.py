"""Which half of its input a coupling moves."""

from __future__ import annotations

import torch
from torch import Tensor


class Partition:
    """x [B, C, ...] as what the net sees (``seen_channels``) and what moves (``moved_channels``).

    The net gives ``moved_channels`` times as many channels as the scalar map has parameters, at the places of what it saw.
    ``flip`` exchanges the halves: two couplings, one of them flipped, move everything.
    """

    seen_channels: int
    moved_channels: int

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the net sees, what moves)."""
        raise NotImplementedError

    def select(self, params: Tensor) -> Tensor:
        """Of the net's output, the parameters of what moves."""
        return params

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        """The inverse of ``split``."""
        raise NotImplementedError


class ChannelHalves(Partition):
    """The first half of the channels is seen and the second, with an odd number the larger, moves."""

    def __init__(self, channels: int, flip: bool = False):
        if channels < 2:
            raise ValueError("a coupling of channel halves needs at least two channels: squeeze first")
        self.flip = flip
        self.sizes = [channels // 2, channels - channels // 2]
        self.seen_channels, self.moved_channels = reversed(self.sizes) if flip else self.sizes

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.split(self.sizes, 1)
        return (second, first) if self.flip else (first, second)

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, seen] if self.flip else [seen, moved], 1)


class OddEven(Partition):
    """Elements 1, 3, 5, ... of a vector [B, D] are seen and 2, 4, ... move.

    NICE, Dinh et al. 2014 (arXiv:1410.8516), sec. 5.1.
    """

    def __init__(self, channels: int, flip: bool = False):
        if channels < 2:
            raise ValueError("a coupling of odd and even elements needs at least two")
        self.seen, self.moved = (1, 0) if flip else (0, 1)  # the first index of each
        odd_even = [channels - channels // 2, channels // 2]
        self.seen_channels, self.moved_channels = odd_even[self.seen], odd_even[self.moved]

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.seen :: 2], x[:, self.moved :: 2]

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        x = moved.new_empty(len(moved), self.seen_channels + self.moved_channels, *moved.shape[2:])
        x[:, self.seen :: 2], x[:, self.moved :: 2] = seen, moved
        return x


class Checkerboard(Partition):
    """Of each channel of [B, C, H, W], pixels with even row + column are seen, as an image that is 0 elsewhere; the odd move.

    What moves is a list of pixels, [B, C, H W / 2]. RealNVP, Dinh et al. 2016 (arXiv:1605.08803), sec. 3.4, fig. 3. A 1x1 image
    is one even pixel.
    """

    def __init__(self, channels: int, flip: bool = False):
        self.flip = flip
        self.seen_channels = self.moved_channels = channels

    def _moving(self, image: Tensor) -> Tensor:
        """The places that move, of the H W in raster order."""
        height, width = image.shape[2:]
        first = 0 if self.flip else 1
        if width % 2:
            return torch.arange(first, height * width, 2, device=image.device)
        place = torch.arange(0, height * width, 2, device=image.device)
        return place + (place // width + first) % 2

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        moving, pixels = self._moving(x), x.flatten(2)
        return pixels.index_fill(2, moving, 0.0).view(x.shape), pixels.index_select(2, moving)

    def select(self, params: Tensor) -> Tensor:
        return params.flatten(2).index_select(2, self._moving(params))

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return seen.flatten(2).index_copy(2, self._moving(seen), moved).view(seen.shape)
