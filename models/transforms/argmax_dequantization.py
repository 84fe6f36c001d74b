"""Integers as the argmax of vectors, for flows over categories (Hoogeboom et al. 2021, arXiv:2102.05379)."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log, log2

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.contracts import sum_event
from models.transforms.dequantize import Dequantization


class _Thresholded(Dequantization):
    """Numbers v = t(u; x) on the whole line, u ~ q(u | x) a conditional flow: contribution log |det dt/du| - log q(u | x).

    ``width`` numbers for each sub-pixel: [B, C, H, W] becomes [B, C width, H, W]. ``noise(image_channels, shape)`` makes q.
    """

    unit_interval = False

    def __init__(self, shape: tuple[int, int, int], levels: int | None, width: int, noise: Callable[..., nn.Module]):
        super().__init__()
        self.levels, self.width = levels or 2, width  # continuous data (levels: null) are not dequantized
        self.noise = noise(shape[0], self.shape(shape))
        # what carries the module's device and dtype
        self.register_buffer("one", torch.ones(()), persistent=False)

    def shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        channels, height, width = shape
        return channels * self.width, height, width

    def threshold(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(v, log dv/du), both shaped as u [B, C, width, H, W], such that v is one of x's."""
        raise NotImplementedError

    def values(self, v: Tensor) -> Tensor:
        """The integers [B, C, H, W] of v [B, C, width, H, W], which may be beyond the last level."""
        raise NotImplementedError

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, log_prob = self.noise((x + 0.5 * self.one) / self.levels - 0.5)
        v, log_slope = self.threshold(u.unflatten(1, (-1, self.width)), x)
        return v.flatten(1, 2), sum_event(log_slope) - log_prob

    def midpoint(self, x: Tensor) -> Tensor:
        """The v of u = 0."""
        zero = self.one.new_zeros(len(x), x.shape[1], self.width, *x.shape[2:])
        return self.threshold(zero, x)[0].flatten(1, 2)

    def on_data(self, z: Tensor) -> Tensor:
        return (self.values(z.unflatten(1, (-1, self.width))) < self.levels).flatten(1).all(1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.values(z.unflatten(1, (-1, self.width))).clamp(max=self.levels - 1).to(torch.uint8)


class ArgmaxDequantization(_Thresholded):
    """K numbers for each sub-pixel, the largest of which is x's (sec. 3.2, thresholding):

        v_x = u_x + log K,   v_i = v_x - softplus(softplus(v_x) - u_i)

    Every v is some x's: no mass is lost. Deviation: the paper has u_x and softplus(v_x - u_i), whose v_i crowd below a low v_x.
    With these, independent logistics u become independent logistics v given that v_i < v_x, and v_x about what the largest
    of K is: q starts near the posterior of independent numbers, and the weights p / q near 1.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int | None, noise: Callable[..., nn.Module]):
        super().__init__(shape, levels, levels or 2, noise)

    def threshold(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        place = x.long().unsqueeze(2)
        largest = u.gather(2, place) + log(self.levels)
        below = F.softplus(largest) - u
        return (largest - F.softplus(below)).scatter(2, place, largest), F.logsigmoid(below).scatter(2, place, 0.0)

    def values(self, v: Tensor) -> Tensor:
        return v.argmax(2)


class BinaryArgmaxDequantization(_Thresholded):
    """A number for each binary digit of x, the first the highest, whose sign is the digit: v = +-softplus(u) (sec. 3.3,
    the Cartesian product of binary spaces).

    ceil(log2 K) numbers; where K is no power of 2, what p has at digits of K and above is lost, and samples there are clamped.
    """

    def __init__(self, shape: tuple[int, int, int], levels: int | None, noise: Callable[..., nn.Module]):
        super().__init__(shape, levels, ceil(log2(levels or 2)), noise)

    def _powers(self, v: Tensor) -> Tensor:
        return 2 ** torch.arange(self.width - 1, -1, -1, device=v.device).view(-1, 1, 1)

    def threshold(self, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        digits = x.long().unsqueeze(2) // self._powers(u) % 2
        return (2 * digits - 1) * F.softplus(u), F.logsigmoid(u)

    def values(self, v: Tensor) -> Tensor:
        return ((v > 0) * self._powers(v)).sum(2)
