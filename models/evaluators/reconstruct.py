"""A picture of images and their reconstructions."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator
from models.pictures import save_grid


class Reconstruct(Evaluator):
    """``num`` images of the split in rows of ``columns``, each row above its ``model.reconstruct(x, y)``; no number.

    Written to samples/reconstruct_SPLIT_WEIGHTS.png. Raises ConfigError for a model that does not reconstruct.
    """

    def __init__(self, num: int, columns: int):
        self.num, self.columns = num, columns

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = context.model
        if not hasattr(model, "reconstruct"):
            raise ConfigError("this model has no reconstructions: remove the evaluator reconstruct")
        if context.rank:
            return []
        data = context.examples(self.num)
        x, y = data.to(context.device)
        with context.noise("reconstruct"):
            back = model.reconstruct(x, y)
        spec = model.spec
        if spec.levels is not None:  # a mean lies between the levels: show both in 256 greys
            x, back = ((t * (255 / (spec.levels - 1))).round().to(torch.uint8) for t in (x, back))
            spec = replace(spec, levels=256)
        rows = [half for pair in zip(x.split(self.columns), back.split(self.columns)) for half in pair]
        (context.folder / "samples").mkdir(exist_ok=True)
        path = context.folder / "samples" / f"reconstruct_{context.split}_{context.weights}.png"
        save_grid(torch.cat(rows), spec, path, columns=self.columns)
        return []
