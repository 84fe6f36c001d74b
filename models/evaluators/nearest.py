"""Whether samples repeat the training set."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator, record
from models.pictures import rgb, save_labelled


class Nearest(Evaluator):
    """Distances from ``num`` samples, and from as many images of the split, to the nearest of all training images.

    d(a, b) = sqrt(mean_i (a_i - b_i)^2) in levels, exact. Medians: ``nearest_sample_levels`` and, of images that were not
    trained on, ``nearest_data_levels``. Samples much closer than those are memorised training images; about as close, or
    farther, they are not. (Blurred or empty images are close to everything: look at the picture.) ``nearest_copies``
    is the share of samples equal to a training image, its field ``held_out`` that of the split's images, which is above 0
    where training and test set overlap. Training images count as stored: no flips or crops.

    The picture samples/nearest_SPLIT_WEIGHTS.png shows the ``rows`` samples that are closest, each with its ``neighbours``.
    Raises ConfigError for continuous data and for split=train, where every image is its own neighbour.
    """

    def __init__(self, num: int, neighbours: int, rows: int):
        if min(num, neighbours, rows) < 1:
            raise ValueError(f"evaluators.nearest: num, neighbours and rows must be at least 1; got {num}, {neighbours}, {rows}")
        self.num, self.neighbours, self.rows = num, neighbours, rows

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        spec, data = context.model.spec, context.datamodule
        if spec.levels is None:
            raise ConfigError("nearest compares images, and this data is continuous: take it out of evaluators")
        if context.split == "train" or data.num_examples(context.split) == 0:
            raise ConfigError("nearest compares samples with images that were not trained on: set split=test or split=val")
        samples = context.gather(self._sample(context) if context.rank == 0 else None)[0]
        held_out = context.examples(self.num).x
        queries = torch.cat([samples, held_out]).to(context.device)
        squared, which = nearest(queries, ((index, x) for index, x, _ in context.batches("nearest", "train")), self.neighbours)
        squared, which = (torch.cat(parts, 1) for parts in zip(*context.gather((squared.cpu(), which.cpu()))))
        squared, which = closest(squared, which, self.neighbours)

        distance = (squared / spec.dims).sqrt()
        mine, theirs = distance[:, 0].split([len(samples), len(held_out)])
        if context.rank == 0:
            first = mine.argsort(dim=0, stable=True)[: self.rows]
            self._draw(context, samples[first], data.split("train").x[which[first]], distance[first])
        copies, overlap = (float((d == 0).double().mean()) for d in (mine, theirs))
        error = sqrt(copies * (1 - copies) / len(mine))
        return [
            record("nearest_sample_levels", *median(mine), "levels", "estimate", len(mine)),
            record("nearest_data_levels", *median(theirs), "levels", "estimate", len(theirs)),
            record("nearest_copies", copies, error, "share", "estimate", len(mine), held_out=overlap),
        ]

    def _sample(self, context: Context) -> Tensor:
        spec = context.model.spec
        y = None if spec.classes is None else torch.arange(self.num, device=context.device) % spec.classes
        with context.noise("nearest"):
            return context.model.sample(self.num, y).cpu()

    def _draw(self, context: Context, samples: Tensor, neighbours: Tensor, distance: Tensor) -> None:
        """``samples`` [n, C, H, W] with ``neighbours`` [n, k, C, H, W] at ``distance`` [n, k]."""
        rows = torch.cat([samples[:, None], neighbours], 1).flatten(0, 1)
        titles = ["sample", "nearest training images", *[""] * (neighbours.shape[1] - 1)]
        captions = [text for row in distance.tolist() for text in ("", *(f"{d:.2f}" for d in row))]
        path = context.folder / "samples" / f"nearest_{context.split}_{context.weights}.png"
        save_labelled(rgb(rows, context.model.spec.levels), path, titles, captions)


def nearest(queries: Tensor, batches: Iterable[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Squared Euclidean distances [Q, k] of integer ``queries`` [Q, ...] to the nearest of all ``batches``, and their indices.

    ``batches`` gives (index [b], x [b, ...]). |q - x|^2 = |q|^2 - 2 q x + |x|^2 is exact: sums of integers below 2^53.
    Equally near ones stand in the order in which they came; where there are fewer than k, fewer come back.
    """
    q = queries.flatten(1).double()
    squared, which = q.new_empty(len(q), 0), torch.empty(len(q), 0, dtype=torch.int64, device=q.device)
    for index, x in batches:
        x = x.flatten(1).double()
        new = torch.addmm(q.square().sum(1, keepdim=True) + x.square().sum(1), q, x.T, alpha=-2)
        index = index.to(q.device).expand(len(q), -1)
        squared, which = closest(torch.cat([squared, new], 1), torch.cat([which, index], 1), k)
    return squared, which


def closest(squared: Tensor, which: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` smallest of ``squared`` [Q, n] in each row with their ``which`` [Q, n]; of equal ones the smallest index."""
    by_index = which.argsort(1)
    squared, which = squared.gather(1, by_index), which.gather(1, by_index)
    nearest_first = squared.argsort(dim=1, stable=True)[:, :k]
    return squared.gather(1, nearest_first), which.gather(1, nearest_first)


def median(values: Tensor) -> tuple[float, float | None]:
    """The median and its standard error: half the distance of the order statistics one standard error of their rank,
    sqrt(n) / 2, to either side (the distribution-free interval; David & Nagaraja 2003, section 7.1). None for one value."""
    if len(values) < 2:
        return float(values), None
    reach = 0.5 / sqrt(len(values))
    low, middle, high = values.quantile(torch.tensor([max(0.0, 0.5 - reach), 0.5, min(1.0, 0.5 + reach)], dtype=values.dtype))
    return float(middle), float(high - low) / 2
