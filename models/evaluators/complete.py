"""A picture of completions of half-hidden images."""

from __future__ import annotations

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator
from models.pictures import HIDDEN, rgb, save_labelled

class Complete(Evaluator):
    """``num`` rows: an image of the split, what is shown of it, and ``draws`` completions by the model; no number.

    Shown are the first ``given`` (a fraction) of the pixels in the model's order, the others are drawn from
    p(x_hidden | x_shown, y) by ``model.complete``; with ``top_p`` below 1 as in the evaluator ``samples``. Written to
    samples/complete_SPLIT_WEIGHTS.png. Raises ConfigError for a model that does not complete and for continuous data.
    """

    def __init__(self, num: int, given: float, draws: int, temperature: float, top_p: float):
        if not 0 <= given < 1:
            raise ValueError(f"evaluators.complete.given is a fraction of the pixels, at least 0 and below 1; got {given}")
        if min(num, draws) < 1:
            raise ValueError(f"evaluators.complete needs num and draws of at least 1; got num={num}, draws={draws}")
        self.num, self.given, self.draws = num, given, draws
        self.temperature, self.top_p = temperature, top_p

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model, spec = context.model, context.model.spec
        if not hasattr(model, "complete") or spec.levels is None:
            raise ConfigError("this model completes no images: take complete out of evaluators")
        if context.rank:
            return []
        data = context.examples(self.num)
        x, y = data.to(context.device)
        num_given = round(self.given * spec.shape[1] * spec.shape[2])
        again = None if y is None else y.repeat_interleave(self.draws)
        with context.noise("complete"):
            drawn = model.complete(x.repeat_interleave(self.draws, 0), num_given, again, self.temperature, self.top_p)
        known = rgb(x, spec.levels)
        shown = torch.where(self._hidden(model.order, num_given, x), torch.tensor(HIDDEN).view(3, 1, 1), known).to(torch.uint8)
        drawn = rgb(drawn, spec.levels).unflatten(0, (-1, self.draws))
        rows = torch.cat([torch.stack([known, shown], 1), drawn], 1)
        path = context.folder / "samples" / f"complete_{context.split}_{context.weights}.png"
        save_labelled(rows.flatten(0, 1), path, ["original", "given", "completions", *[""] * (self.draws - 1)])
        return []

    @staticmethod
    def _hidden(order, num_given: int, x: Tensor) -> Tensor:
        """Where ``rgb(x)`` is not given, bool like it: positions from ``num_given`` on, at their places in the image."""
        places = torch.arange(order.shape[1] * order.shape[2]).view(1, 1, *order.shape[1:])
        hidden = order.restore(places, order.permutation(0), x.shape[1:]) >= num_given
        return rgb(hidden.expand(x.shape), 2) > 0
