"""A picture of images moved along the latent direction of a label."""

from __future__ import annotations

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator, evenly_spaced
from models.evaluators.latents import Latents
from models.pictures import rgb, save_labelled


class Attributes(Evaluator):
    """A row for each class c: an image of another class, moved by t (mean z of c - mean z of the others), ``strengths`` t.

    Attribute arithmetic in every latent of ``model.encode`` (Kingma & Dhariwal 2018, arXiv:1807.03039, section 6.2), the means
    over ``count`` training images. A conditional model keeps the image's own label. At most ``rows`` classes are shown. Written to
    samples/attributes_SPLIT_WEIGHTS.png; no number. Raises ConfigError without latents or without labels.
    """

    def __init__(self, rows: int, strengths: list[float], count: int):
        if min(rows, count) < 1 or not strengths:
            raise ValueError("evaluators.attributes needs rows and count of at least 1 and some strengths")
        self.rows, self.strengths, self.count = rows, list(strengths), count

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        spec, latents = context.model.spec, Latents(context.model, "attributes")
        if spec.classes is None or spec.levels is None:
            raise ConfigError("attributes are found by the labels of images, and these data have none: take it out of evaluators")
        if context.rank:
            return []
        means, counts = self._means(context, latents)
        rows = [c for c in range(spec.classes) if 0 < counts[c] < sum(counts)][: self.rows]
        if not rows:
            raise ConfigError(f"{self.count} training images hold a single class: set a larger evaluators.attributes.count")
        data = context.examples(max(64, 4 * spec.classes))
        chosen = [int((data.y != c).nonzero()[i % int((data.y != c).sum())]) for i, c in enumerate(rows)]
        x, y = data[torch.tensor(chosen)].to(context.device)
        starts, share = latents.encode(x, y), counts / counts.sum()
        # of all = share mean_c + (1 - share) mean_others, so mean_c - mean_others = (mean_c - mean of all) / (1 - share)
        overall = [torch.einsum("c,c...->...", share, level) for level in means]
        columns = {"image": x}
        for strength in self.strengths:
            moved = []
            for start, level, centre in zip(starts, means, overall, strict=True):
                others = (1 - share[rows]).view(-1, *[1] * (level.dim() - 1))
                moved.append(start + strength * ((level[rows] - centre) / others).to(start.dtype))
            columns[f"{strength:+g}"] = latents.decode(moved, y)
        images = torch.stack([rgb(images, spec.levels) for images in columns.values()], 1)
        path = context.folder / "samples" / f"attributes_{context.split}_{context.weights}.png"
        captions = [f"to {c}" if k == 0 else "" for c in rows for k in range(len(columns))]
        save_labelled(images.flatten(0, 1), path, list(columns), captions)
        return []

    def _means(self, context: Context, latents: Latents) -> tuple[list[Tensor], Tensor]:
        """Of each latent the mean of every class [classes, ...], and the images of each class [classes], float64."""
        data = context.datamodule.split("train")[evenly_spaced(context.datamodule.num_examples("train"), self.count)]
        classes, size = context.model.spec.classes, context.datamodule.eval_batch_size
        sums, counts = None, torch.zeros(classes, dtype=torch.float64, device=context.device)
        for start in range(0, len(data), size):
            x, y = data[start : start + size].to(context.device)
            levels = [level.double() for level in latents.encode(x, y)]
            sums = sums or [level.new_zeros(classes, *level.shape[1:]) for level in levels]
            for total, level in zip(sums, levels, strict=True):
                total.index_add_(0, y, level)
            counts.index_add_(0, y, torch.ones_like(y, dtype=torch.float64))
        return [total / counts.clamp(min=1).view(-1, *[1] * (total.dim() - 1)) for total in sums], counts
