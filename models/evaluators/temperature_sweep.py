"""A picture of what temperature does to samples."""

from __future__ import annotations

import torch

from models.evaluators.base import Context, Evaluator
from models.pictures import rgb, save_labelled, save_points


class TemperatureSweep(Evaluator):
    """``num`` rows of draws under one seed, a column for each of ``temperatures``; no number.

    A flow draws the same standardised latents in every column, scaled by the temperature (Kingma & Dhariwal 2018,
    arXiv:1807.03039, section 6.3). With labelled data row i has label i mod classes. Of continuous data, density maps of ``num``
    draws. Written to samples/temperature_sweep_WEIGHTS.png.
    """

    def __init__(self, num: int, temperatures: list[float]):
        if num < 1 or not temperatures or min(temperatures) < 0:
            raise ValueError(f"temperature_sweep needs num >= 1 and temperatures of at least 0; got {num} and {list(temperatures)}")
        self.num, self.temperatures = num, list(temperatures)

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        if context.rank:
            return []
        model, spec, columns = context.model, context.model.spec, {}
        y = None if spec.classes is None else torch.arange(self.num, device=context.device) % spec.classes
        for temperature in self.temperatures:
            with context.noise("samples"):
                columns[f"T = {temperature:g}"] = model.sample(self.num, y, temperature)
        path = context.folder / "samples" / f"temperature_sweep_{context.weights}.png"
        if spec.levels is None:
            save_points(columns, path)
        else:
            images = torch.stack([rgb(images, spec.levels) for images in columns.values()], 1)
            save_labelled(images.flatten(0, 1), path, list(columns))
        return []
