"""A picture of what each level of latents knows of an image."""

from __future__ import annotations

import torch

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator
from models.evaluators.latents import Latents
from models.pictures import rgb, save_labelled


class PartialLatents(Evaluator):
    """``num`` rows: an image, and its reconstructions from fewer and fewer of its levels of latents; no number.

    The coarsest levels are kept and the finer ones are drawn anew, as in figure 8 of Dinh et al. 2016 (arXiv:1605.08803). A
    column's title says what share of the numbers is kept. Written to samples/partial_latents_SPLIT_WEIGHTS.png. Raises
    ConfigError for a model with fewer than two levels.
    """

    def __init__(self, num: int):
        if num < 1:
            raise ValueError(f"evaluators.partial_latents.num must be at least 1; got {num}")
        self.num = num

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model, latents = context.model, Latents(context.model, "partial_latents")
        data = context.examples(self.num)
        x, y = data.to(context.device)
        levels = latents.encode(x, y)
        if len(levels) < 2 or model.spec.levels is None:
            raise ConfigError("this model has no levels of image latents to leave out: take partial_latents out of evaluators")
        if context.rank:
            return []
        sizes = [level[0].numel() for level in levels]
        columns = {"image": x}
        for dropped in range(len(levels)):
            with context.noise("partial_latents"):
                share = sum(sizes[dropped:]) / sum(sizes)
                columns[f"{share:.0%} kept" if share >= 0.01 else f"{share:.1%} kept"] = latents.decode(
                    [None] * dropped + levels[dropped:], y
                )
        images = torch.stack([rgb(images, model.spec.levels) for images in columns.values()], 1)
        path = context.folder / "samples" / f"partial_latents_{context.split}_{context.weights}.png"
        save_labelled(images.flatten(0, 1), path, list(columns))
        return []
