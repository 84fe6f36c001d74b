"""Levels {0..K-1} as real numbers, and the checks all heads share."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import DataSpec, Likelihood


def require_levels(spec: DataSpec, head: str) -> int:
    """K; a ValueError when the data is continuous."""
    if spec.levels is None:
        raise ValueError(f"likelihood={head} scores integers but this data is continuous: choose likelihood=gaussian")
    return spec.levels


def centred(x: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """Integers to their signed distance from mid-grey in levels, x - (K-1)/2: exact in every float type but half precision."""
    return x.to(dtype) - (levels - 1) / 2


def nearest_level(t: Tensor, levels: int) -> Tensor:
    """The inverse of ``centred``, rounded into {0..K-1}: uint8. Values beyond the ends go to the edge bins."""
    return (t + (levels - 1) / 2).round().clamp(0, levels - 1).to(torch.uint8)


def at_least_float32(params: Tensor) -> Tensor:
    """Half-precision net outputs as float32: a log-probability over 256 levels needs its digits."""
    return params.float() if params.dtype in (torch.float16, torch.bfloat16) else params


def location_and_log_scale(params: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2 C, H, W] -> [B, C, H, W] each."""
    return at_least_float32(params).unflatten(1, (-1, 2)).unbind(2)


def all_levels(levels: int, like: Tensor) -> Tensor:
    """The centred levels 0..K-1, [K, 1, 1]."""
    return centred(torch.arange(levels, device=like.device), levels, like.dtype)[:, None, None]


class LocationScale(Likelihood):
    """What the discretized heads with one location and one log scale a sub-pixel share; ``head`` is their name in a config.

    ``params`` [B, 2 C, H, W]: the location and the log scale of channel 0, then those of channel 1, ...
    """

    head: str

    def __init__(self, spec: DataSpec, min_log_scale: float):
        super().__init__()
        self.spec = spec
        self.groups = spec.shape[0]
        self.levels = require_levels(spec, self.head)
        self.min_log_scale = min_log_scale

    def param_channels(self) -> int:
        return 2 * self.spec.shape[0]

    def _parse(self, params: Tensor, temperature: float = 1.0) -> tuple[Tensor, ...]:
        """What ``_bins`` takes, [B, C, H, W] each."""
        raise NotImplementedError

    def _bins(self, t: Tensor, *parts: Tensor) -> Tensor:
        """log of the mass in the bin of centred level ``t``."""
        raise NotImplementedError

    def log_prob_map(self, params: Tensor, x: Tensor) -> Tensor:
        parts = self._parse(params)
        return self._bins(centred(x, self.levels, parts[0].dtype), *parts)

    def log_pmf(self, params: Tensor, x: Tensor, channel: int, temperature: float = 1.0) -> Tensor:
        parts = [part[:, channel, None] for part in self._parse(params, temperature)]
        return self._bins(all_levels(self.levels, parts[0]), *parts)
