"""A picture of samples."""

from __future__ import annotations

import torch

from models.evaluators.base import Context, Evaluator
from models.pictures import save_grid


class Samples(Evaluator):
    """``num`` draws at each of ``temperatures``, always under one seed, to samples/WEIGHTS_tTEMPERATURE.png; no number.

    With labelled data draw i has label i mod classes, which unconditional models ignore.
    """

    def __init__(self, num: int, temperatures: list[float]):
        self.num, self.temperatures = num, temperatures

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        if context.rank:
            return []
        spec = context.model.spec
        y = None if spec.classes is None else torch.arange(self.num, device=context.device) % spec.classes
        (context.folder / "samples").mkdir(exist_ok=True)
        for temperature in self.temperatures:
            with context.noise("samples"):
                images = context.model.sample(self.num, y, temperature)
            save_grid(images, spec, context.folder / "samples" / f"{context.weights}_t{temperature:g}.png")
        return []
