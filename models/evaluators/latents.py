"""Latents as evaluators use them: always a list, always back to an image that can be shown."""

from __future__ import annotations

import torch
from torch import Tensor

from models.build import ConfigError


class Latents:
    """``model.encode`` and ``model.decode`` with one form for models with one latent tensor and those with several.

    Raises ConfigError for a model without them: ``what`` is the evaluator that asked.
    """

    def __init__(self, model, what: str):
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise ConfigError(f"this model has no latents that it can decode: take {what} out of evaluators")
        self.model, self.single = model, None

    def encode(self, x: Tensor, y: Tensor | None) -> list[Tensor]:
        """The latents of images, each [B, ...]."""
        latents = self.model.encode(x, y)
        self.single = isinstance(latents, Tensor)
        return [latents] if self.single else latents

    def decode(self, latents: list[Tensor | None], y: Tensor | None) -> Tensor:
        """Images: uint8 [B, C, H, W] in {0..K-1}, or floats for continuous data."""
        image, levels = self.model.decode(latents[0] if self.single else latents, y), self.model.spec.levels
        return image if levels is None else image.round().clamp(0, levels - 1).to(torch.uint8)
