"""Max pooling, and the likelihood of what it drops."""

from __future__ import annotations

from collections.abc import Callable
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import Conditional
from models.transforms.surjection import Surjection


class MaxPool(Surjection):
    """The largest of each 2x2 block: [B, C, H, W] -> [B, C, H/2, W/2], contribution sum [-log 4 + log p(the offsets | z)].

    Nielsen et al. 2020 (arXiv:2007.02731), table 3: each of the four places is as likely to hold the largest value, and the
    other three lie below it by offsets >= 0 with p = ``offsets(C, 3 C)``, in the released code standard half-normal. The
    residual is by how much each of the four lies below z [B, 4C, H/2, W/2]; decoded, the least of a block becomes 0.
    """

    term = "pool"

    def __init__(self, channels: int, offsets: Callable[[int, int], Conditional]):
        super().__init__()
        self.kept = channels
        self.offsets = offsets(channels, 3 * channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, below = self.encode(x)
        below = below.unflatten(1, (-1, 4))
        others = _without(below.argmin(2, keepdim=True))
        choice = -log(4) * z[0].numel()
        return z, choice + self.offsets(z).log_prob(below.gather(2, others).flatten(1, 2))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        blocks = F.pixel_unshuffle(x, 2).unflatten(1, (-1, 4))
        z = blocks.amax(2)
        return z, (z.unsqueeze(2) - blocks).flatten(1, 2)

    def decode(self, z: Tensor, residual: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        if residual is None:
            offsets = self.offsets(z).rsample(len(z), temperature).unflatten(1, (-1, 3))
            others = _without(torch.randint(4, z.shape, device=z.device).unsqueeze(2))
            below = torch.zeros_like(z).unsqueeze(2).expand(-1, -1, 4, -1, -1).scatter(2, others, offsets)
        else:
            below = residual.unflatten(1, (-1, 4))
            below = below - below.amin(2, keepdim=True)
        return F.pixel_shuffle((z.unsqueeze(2) - below).flatten(1, 2), 2)


def _without(place: Tensor) -> Tensor:
    """The three places [B, C, 3, H, W] of 0 to 3 that are not ``place`` [B, C, 1, H, W], in order."""
    first = torch.arange(3, device=place.device).view(3, 1, 1)
    return first + (first >= place)
