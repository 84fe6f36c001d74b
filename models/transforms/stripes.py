"""A partition of images by columns."""

from __future__ import annotations

import torch
from torch import Tensor

from models.transforms.partitions import Partition


class Stripes(Partition):
    """Of [B, C, H, W], W even, the columns 0, 2, ... are seen and 1, 3, ... move, both as images [B, C, H, W / 2].

    What the released code of Flow++ calls a checkerboard (flows.py, CheckerboardSplit); nets run at half the positions.
    """

    def __init__(self, channels: int, flip: bool = False):
        self.seen, self.moved = (1, 0) if flip else (0, 1)  # the first column of each
        self.seen_channels = self.moved_channels = channels

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., self.seen :: 2], x[..., self.moved :: 2]

    def join(self, seen: Tensor, moved: Tensor) -> Tensor:
        return torch.stack([moved, seen] if self.seen else [seen, moved], -1).flatten(3)
