"""A picture of straight lines between images in latent space."""

from __future__ import annotations

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator
from models.evaluators.latents import Latents
from models.pictures import save_grid


class Interpolate(Evaluator):
    """``num`` rows: an image, ``num - 2`` steps between its latents and another's, and that other image; no number.

    z(t) = (1 - t) z_0 + t z_1 in every latent of ``model.encode(x, y)`` (a tensor or a list of them), shown through
    ``model.decode(z, y)`` (Kingma & Dhariwal 2018, arXiv:1807.03039, section 6.2). The ends are 2 ``num`` examples of
    the split; a conditional model is given the label of the nearer end. Written to samples/interpolate_SPLIT_WEIGHTS.png.
    Raises ConfigError for a model without latents to decode.
    """

    def __init__(self, num: int):
        if num < 2:
            raise ValueError(f"evaluators.interpolate.num must be at least 2; got {num}")
        self.num = num

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model, latents = context.model, Latents(context.model, "interpolate")
        data = context.examples(2 * self.num)
        if len(data) < 2 * self.num:
            raise ConfigError(f"split={context.split} has {len(data)} examples: set evaluators.interpolate.num={len(data) // 2}")
        if context.rank:
            return []
        x, y = data.to(context.device)
        with context.noise("interpolate"):
            columns = self._columns(latents, x, y)
        (context.folder / "samples").mkdir(exist_ok=True)
        images = torch.stack(columns, 1).flatten(0, 1)
        path = context.folder / "samples" / f"interpolate_{context.split}_{context.weights}.png"
        save_grid(images, model.spec, path, columns=self.num)
        return []

    def _columns(self, latents: Latents, x: Tensor, y: Tensor | None) -> list[Tensor]:
        levels = latents.encode(x, y)
        starts, ends = slice(0, None, 2), slice(1, None, 2)
        columns = [x[starts]]
        for step in range(1, self.num - 1):
            t = step / (self.num - 1)
            label = None if y is None else y[starts if t < 0.5 else ends]
            columns.append(latents.decode([torch.lerp(level[starts], level[ends], t) for level in levels], label))
        return [*columns, x[ends]]
