"""A picture of images whose hidden part climbs the model's density."""

from __future__ import annotations

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator
from models.pictures import HIDDEN, rgb, save_labelled


NOISE = 0.1


def masks(height: int, width: int) -> dict[str, Tensor]:
    """What is hidden, by name: halves of the image, its middle, and every second pixel; bool [H, W]."""
    row, column = torch.arange(height)[:, None].expand(height, width), torch.arange(width).expand(height, width)
    middle = (row >= height // 4) & (row < height - height // 4) & (column >= width // 4) & (column < width - width // 4)
    return {
        "top": row < height // 2,
        "bottom": row >= height // 2,
        "left": column < width // 2,
        "right": column >= width // 2,
        "middle": middle,
        "every second": (row + column) % 2 == 1,
    }


class Inpaint(Evaluator):
    """``num`` rows: an image, and with each of six parts hidden what noisy ascent of log p(v_hidden, v_shown) finds; no number.

    v_hidden starts uniform in [0, 1] and moves by a_i (direction + NOISE e), a_i = 10 / (100 + i), e ~ N(0, I), back into [0, 1]
    after each of ``steps`` (Dinh et al. 2014, arXiv:1410.8516, section 5.2). Deviation: the direction is d log p / d v, divided by
    the root of its running mean square, number by number, since slopes of thousands and of a few occur in one image; in the
    paper it is the slope itself, beside which noise of scale 1 is small.
    Written to samples/inpaint_SPLIT_WEIGHTS.png. Raises ConfigError for a model without a density over reals in [0, 1].
    """

    def __init__(self, num: int, steps: int):
        if min(num, steps) < 1:
            raise ValueError(f"evaluators.inpaint needs num and steps of at least 1; got num={num}, steps={steps}")
        self.num, self.steps = num, steps

    def __call__(self, context: Context) -> list[dict]:
        model, spec = context.model, context.model.spec
        dequantization = getattr(model, "dequantization", None)
        if dequantization is None or not dequantization.unit_interval:
            raise ConfigError("this model has no density over reals in [0, 1] to climb: take inpaint out of evaluators")
        if context.rank:
            return []
        data, hidden = context.examples(self.num), torch.stack(list(masks(*spec.shape[1:]).values())).to(context.device)
        x, y = (None if t is None else t.to(context.device).repeat_interleave(len(hidden), 0) for t in (data.x, data.y))
        hidden = hidden.repeat(len(data), 1, 1).unsqueeze(1)
        with context.noise("inpaint"):
            found = dequantization.inverse(self._climb(model, dequantization.midpoint(x), y, hidden))
        known = rgb(x, spec.levels)
        shown = torch.where(rgb(hidden.expand_as(x), 2) > 0, torch.tensor(HIDDEN).view(3, 1, 1), known).to(torch.uint8)
        pairs = torch.stack([shown, rgb(found, spec.levels)], 1).unflatten(0, (len(data), -1)).flatten(1, 2)
        rows = torch.cat([rgb(data.x, spec.levels).unsqueeze(1), pairs], 1)
        titles = ["image", *(title for name in masks(*spec.shape[1:]) for title in (name, ""))]
        path = context.folder / "samples" / f"inpaint_{context.split}_{context.weights}.png"
        save_labelled(rows.flatten(0, 1), path, titles)
        return []

    def _climb(self, model, v: Tensor, y: Tensor | None, hidden: Tensor) -> Tensor:
        """``v`` [B, C, H, W] with the ``hidden`` [B, 1, H, W] pixels found anew."""
        v, square = torch.where(hidden, torch.rand_like(v), v), 0.0
        for i in range(self.steps):
            with torch.enable_grad():
                v.requires_grad_()
                (slope,) = torch.autograd.grad(model.score_continuous(v, y).nats.sum(), v)
            square = slope.square() if i == 0 else 0.9 * square + 0.1 * slope.square()
            direction = slope / (square.sqrt() + torch.finfo(slope.dtype).tiny)
            moved = v.detach() + 10 / (100 + i) * (direction + NOISE * torch.randn_like(v))
            v = torch.where(hidden, moved.clamp(0, 1), v.detach())
        return v
