"""The concatenated ELU (Shang et al. 2016, arXiv:1603.05201, with ELU for ReLU), lean enough to be used twice in every block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Margins = tuple[int, int, int, int]
"""How much wider a map is at its left, right, top and bottom."""


def concat_elu(x: Tensor, dim: int = 1) -> Tensor:
    """ELU of x and of -x, side by side: [..., C, ...] -> [..., 2C, ...]."""
    return F.elu(torch.cat([x, -x], dim), inplace=True)


def padded_concat_elu(x: Tensor, margins: Margins = (0, 0, 0, 0), dropout: float = 0.0) -> Tensor:
    """``F.pad(F.dropout(concat_elu(x), dropout), margins)``, keeping for its gradient what the next convolution keeps anyway.

    ELU(+-x) = max(+-x, exp(-|x|) - 1), so that one exponential serves both halves. [B, C, H, W] -> [B, 2C, H', W'].
    """
    return _PaddedConcatELU.apply(x, margins, dropout)


class _PaddedConcatELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, margins, dropout):
        ctx.margins, ctx.scale, kept = margins, 1 / (1 - dropout), None
        x = F.pad(x, margins) if any(margins) else x  # ELU(0) = 0
        y = torch.cat([x, -x], 1)
        floor = x.abs().neg_().expm1_()
        y.unflatten(1, (2, -1)).clamp_min_(floor[:, None])
        if dropout:
            inner = _crop(y, margins)
            kept = _draw_kept(inner, 1 - dropout)
            inner.mul_(kept.to(y.dtype).mul_(ctx.scale))
        ctx.save_for_backward(y, kept)
        return y

    @staticmethod
    def backward(ctx, gradient):
        y, kept = ctx.saved_tensors
        gradient = torch.ops.aten.elu_backward(gradient, 1.0, ctx.scale, 1.0, True, y)  # scale * (1 or y / scale + 1)
        gradient = _crop(gradient, ctx.margins)
        if kept is not None:
            gradient = gradient.mul_(kept.to(gradient.dtype))
        positive, negative = gradient.chunk(2, 1)
        return positive - negative, None, None


def _crop(x: Tensor, margins: Margins) -> Tensor:
    left, right, top, bottom = margins
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _draw_kept(like: Tensor, probability: float) -> Tensor:
    """Ones with that probability, else zeros: uint8, which costs a quarter of float's memory and converts faster than bool.

    Compiled for a CPU, a byte decides on each, so that the probability is a multiple of 1/256: the compiler's own generator
    would take longer than the convolutions.
    """
    if torch.compiler.is_compiling() and not like.is_cuda:
        words = torch.randint(-(2**63), 2**63 - 1, ((like.numel() + 7) // 8,), device=like.device)
        return (words.view(torch.uint8)[: like.numel()].view(like.shape) < round(256 * probability)).to(torch.uint8)
    return torch.empty_like(like, dtype=torch.uint8).bernoulli_(probability)
