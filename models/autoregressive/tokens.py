"""Images as sequences of tokens: pixels in raster order, or with several groups the channels of each pixel in turn."""

from __future__ import annotations

from torch import Tensor


def token_sizes(shape: tuple[int, int, int], out_channels: int, groups: int) -> tuple[int, int, int]:
    """(number of tokens L, values a token U, parameters a token Q) of images (C, H, W) with ``out_channels`` parameters a pixel."""
    channels, height, width = shape
    return height * width * groups, channels // groups, out_channels // groups


def to_tokens(x: Tensor, groups: int) -> Tensor:
    """[B, C, H, W] -> [L, B, U]."""
    return x.flatten(2).unflatten(1, (groups, -1)).permute(3, 1, 0, 2).flatten(0, 1)


def from_tokens(params: Tensor, groups: int, shape: tuple[int, int, int]) -> Tensor:
    """[L, B, Q] -> [B, groups Q, H, W], the inverse of ``to_tokens``."""
    return params.unflatten(0, (-1, groups)).permute(2, 1, 3, 0).flatten(1, 2).unflatten(2, shape[1:])
