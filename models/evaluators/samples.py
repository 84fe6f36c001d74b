"""A picture of samples."""

from __future__ import annotations

import inspect

import torch

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator
from models.pictures import save_grid


class Samples(Evaluator):
    """``num`` draws at each of ``temperatures``, always under one seed, to samples/WEIGHTS_tTEMPERATURE.png; no number.

    With labelled data draw i has label i mod classes, which unconditional models ignore. ``top_p`` below 1 draws every value
    from the fewest levels that hold so much of its mass, and the file is called WEIGHTS_tTEMPERATURE_pTOPP.png. Raises
    ConfigError where the model's ``sample`` has no such choice.
    """

    def __init__(self, num: int, temperatures: list[float], top_p: float = 1.0):
        if not 0 < top_p <= 1:
            raise ValueError(f"evaluators.samples.top_p is a share of the mass, above 0 and at most 1; got {top_p}")
        self.num, self.temperatures, self.top_p = num, temperatures, top_p

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = context.model
        nucleus = {} if self.top_p == 1 else {"top_p": self.top_p}
        if nucleus and "top_p" not in inspect.signature(model.sample).parameters:
            raise ConfigError("this model does not draw level by level: set evaluators.samples.top_p=1")
        if context.rank:
            return []
        spec = model.spec
        y = None if spec.classes is None else torch.arange(self.num, device=context.device) % spec.classes
        (context.folder / "samples").mkdir(exist_ok=True)
        for temperature in self.temperatures:
            with context.noise("samples"):
                images = model.sample(self.num, y, temperature, **nucleus)
            name = f"{context.weights}_t{temperature:g}" + (f"_p{self.top_p:g}" if nucleus else "")
            save_grid(images, spec, context.folder / "samples" / f"{name}.png")
        return []
