"""The concatenated ELU (Shang et al. 2016, arXiv:1603.05201, with ELU for ReLU), lean enough to be used twice in every block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Margins = tuple[int, int]
"""How much wider a map is made at its left and at its top, by zeros."""


def concat_elu(x: Tensor, dim: int = 1) -> Tensor:
    """ELU of x and of -x, side by side: [..., C, ...] -> [..., 2C, ...]."""
    return F.elu(torch.cat([x, -x], dim), inplace=True)


def padded_concat_elu(x: Tensor, margins: Margins = (0, 0), dropout: float = 0.0) -> Tensor:
    """``concat_elu(x)`` with dropout and then ``margins``, keeping for its gradient what the next convolution keeps anyway.

    ELU(+-x) = max(+-x, exp(-|x|) - 1), so that one exponential serves both halves. [B, C, H, W] -> [B, 2C, H', W'].
    """
    return _PaddedConcatELU.apply(x, margins, dropout)


class _PaddedConcatELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, margins, dropout):
        ctx.margins, ctx.scale, kept = margins, 1 / (1 - dropout), None
        x = pad(x, margins)  # ELU(0) = 0
        floor = _expm1(x.abs().neg_())
        y = torch.cat([torch.maximum(x, floor), torch.maximum(-x, floor)], 1)
        if dropout:
            kept = _draw_kept(y, margins, 1 - dropout)
            y.mul_(kept.to(y.dtype).mul_(ctx.scale))
        ctx.save_for_backward(y, kept)
        return y

    @staticmethod
    def backward(ctx, gradient):
        y, kept = ctx.saved_tensors
        gradient = torch.ops.aten.elu_backward(gradient, 1.0, ctx.scale, 1.0, True, y)  # scale, or y + scale below 0
        if kept is not None:
            gradient = gradient.mul_(kept.to(gradient.dtype))
        positive, negative = _crop(gradient, ctx.margins).chunk(2, 1)
        return positive - negative, None, None


def _expm1(x: Tensor) -> Tensor:
    """In place. A compiled graph takes exp(x) - 1, which is off by a rounding of 1 and, unlike expm1, vectorizes well there."""
    return x.exp_().sub_(1) if torch.compiler.is_compiling() else x.expm1_()


def pad(x: Tensor, margins: Margins) -> Tensor:
    """[..., H, W] -> [..., top + H, left + W]."""
    left, top = margins
    return F.pad(x, (left, 0, top, 0)) if left or top else x


def _crop(x: Tensor, margins: Margins) -> Tensor:
    left, top = margins
    return x[..., top:, left:]


def _draw_kept(y: Tensor, margins: Margins, probability: float) -> Tensor:
    """Of y's shape: 1 with that probability, else 0; what the margins get does not matter.

    As bytes, which take a quarter of float's memory and convert faster than bool. A compiled graph on a CPU draws from eight
    random bits each, so that the probability is a multiple of 1/256: torch's generator takes a third of a step there.
    """
    if torch.compiler.is_compiling() and not y.is_cuda:
        b, c, h, w = y.shape
        words = torch.randint(-(2**63), 2**63 - 1, ((y.numel() + 7) // 8,))
        levels = words.view(torch.uint8)[: y.numel()].view(b, h, w, c).permute(0, 3, 1, 2)  # as convolutions are laid out there
        return levels.to(torch.float32) < round(256 * probability)
    return pad(torch.empty_like(_crop(y, margins), dtype=torch.uint8).bernoulli_(probability), margins)
