"""Masked convolutions: an output sees the pixels above it and to its left, and of its own pixel what a mask allows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.nn.kept import Kept


def share(width: int, groups: int) -> list[int]:
    """The owner 0..groups-1 of each of ``width`` features: consecutive shares, as even as can be."""
    if width < groups:
        raise ValueError(f"{width} features cannot be shared among {groups} channels: give every layer at least {groups}")
    return [feature * groups // width for feature in range(width)]


class MaskedConv2d(nn.Module):
    """A convolution whose output at a pixel sees earlier pixels, and those inputs of the pixel itself that its mask allows.

    ``inputs`` and ``outputs`` name the group that owns each channel. Mask "A" shows a pixel's inputs of the groups before the
    output's own, mask "B" those of its own too; every group sees all of the earlier pixels. ``kernel`` (odd, odd) counts its
    taps around the pixel; those below it, and those right of it in a kernel of one row, are not stored.
    [B, len(inputs), H, W] -> [B, len(outputs), H, W].

    Weights start uniform within 1/sqrt(n) for an output of n visible inputs. In evaluation the masked weight is kept until the
    parameter changes. Source: van den Oord et al. 2016, arXiv:1601.06759, section 3.4 and figure 4.
    """

    def __init__(self, inputs: list[int], outputs: list[int], kernel: tuple[int, int], mask: str):
        super().__init__()
        if kernel[0] % 2 == 0 or kernel[1] % 2 == 0 or mask not in ("A", "B"):
            raise ValueError(f"a masked convolution has a kernel of odd size and mask A or B; got {kernel} and {mask}")
        self.inputs, self.outputs, self.mask = inputs, outputs, mask
        self.above, self.left = kernel[0] // 2, kernel[1] // 2
        shape = (len(outputs), len(inputs), self.above + 1, kernel[1] if self.above else self.left + 1)
        owner, reader = torch.tensor(inputs), torch.tensor(outputs)[:, None]
        hidden = torch.zeros(shape, dtype=torch.bool)
        hidden[:, :, -1, self.left] = owner >= reader if mask == "A" else owner > reader
        hidden[:, :, -1, self.left + 1 :] = True
        bound = (~hidden).sum((1, 2, 3)).clamp(min=1).rsqrt()
        self.weight = nn.Parameter((2 * torch.rand(shape) - 1) * bound[:, None, None, None])
        self.bias = nn.Parameter((2 * torch.rand(len(outputs)) - 1) * bound)
        unmasked = not self.above and all(self.visible(group) == len(inputs) for group in set(outputs))
        self.register_buffer("hidden", None if unmasked else hidden, persistent=False)
        self.kept = Kept()

    def visible(self, group: int) -> int:
        """How many of a pixel's own inputs, the first ones, a group of outputs sees."""
        return sum(owner < group + (self.mask == "B") for owner in self.inputs)

    def masked_weight(self) -> Tensor:
        """[out, in, above + 1, ...], zero where the mask hides an input."""
        if self.hidden is None:
            return self.weight
        return self.kept(lambda: [self.weight], lambda: self.weight.masked_fill(self.hidden, 0))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.masked_weight()
        if self.above:
            return F.conv2d(F.pad(x, (0, 0, self.above, 0)), weight, self.bias, padding=(0, self.left))
        return F.conv2d(F.pad(x, (self.left, 0)) if self.left else x, weight, self.bias)
