"""Where in the image the bits go."""

from __future__ import annotations

import torch
from torch import Tensor

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator, Statistics, non_finite, record
from models.pictures import heat, rgb, save_labelled
from models.units import bits, bits_per_dim

COLUMNS = 3
"""Images in a row, each beside its map."""


class CostMap(Evaluator):
    """Mean over the split of what each pixel costs, -log p(x_i | x_<i, y): a picture of it, and the sum as ``cost_map_bpd``.

    The sum equals ``nll_bpd``: a part of the same statement, and a check of the map. Its record also says what the cheapest
    and the dearest pixel cost on average (``lowest``, ``highest``). Pictures: samples/cost_map_SPLIT_WEIGHTS.png, and
    samples/cost_images_SPLIT_WEIGHTS.png with ``num`` images beside their own maps on one scale, whose bright end
    is the cost that one shown pixel in 200 exceeds. In bits, all channels of a pixel together; continuous data in nats
    (``cost_map_nats``).

    Raises ConfigError for a model without ``cost_map(x, y)`` [B, H, W], ValueError where several orders are averaged.
    """

    def __init__(self, num: int):
        if num < 1:
            raise ValueError(f"evaluators.cost_map.num must be at least 1; got {num}")
        self.num = num

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model, spec = context.model, context.model.spec
        if not hasattr(model, "cost_map"):
            raise ConfigError("this model's score has no parts by pixel: take cost_map out of evaluators")
        nats, total = Statistics(), torch.zeros(spec.shape[1:], dtype=torch.float64)
        for index, x, y in context.batches("cost_map"):
            with context.noise("cost_map", int(index[0])):
                costs = model.cost_map(x, y).double().cpu()
            nats.add(index, -costs.flatten(1).sum(1))
            total += costs.sum(0)
        total, nats = sum(context.gather(total)), nats.merged(context)
        if nats.count == 0:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        unit, convert = ("nats", float) if spec.levels is None else ("bits", bits)
        mean = convert(1.0) * total / nats.count
        if context.rank == 0:
            self._draw_mean(context, mean, unit)
            if spec.levels is not None:
                self._draw_images(context, unit)
        extra = {"lowest": float(mean.min()), "highest": float(mean.max()), "non_finite": non_finite(nats)}
        if spec.levels is None:
            return [record("cost_map_nats", -nats.mean, nats.stderr, "nats", "exact", nats.count, **extra)]
        stderr = None if nats.stderr is None else bits(nats.stderr) / spec.dims
        return [record("cost_map_bpd", bits_per_dim(nats.mean, spec.dims), stderr, "bits/dim", "exact", nats.count, **extra)]

    @staticmethod
    def _draw_mean(context: Context, mean: Tensor, unit: str) -> None:
        low, high = min(0.0, float(mean.min())), float(mean.max())
        path = context.folder / "samples" / f"cost_map_{context.split}_{context.weights}.png"
        title, label = f"mean cost of a pixel ({context.split})", f"{high:.3g} {unit} a pixel"
        save_labelled(heat(mean[None], low, high), path, [title], size=256, bar=(low, high, label))

    def _draw_images(self, context: Context, unit: str) -> None:
        data = context.examples(self.num)
        x, y = data.to(context.device)
        with context.noise("cost_map"):
            costs = bits(context.model.cost_map(x, y).double().cpu())
        high = float(costs.flatten().quantile(0.995))
        images = rgb(x, context.model.spec.levels)
        maps = heat(costs, 0.0, high)
        maps = torch.nn.functional.interpolate(maps, images.shape[2:])  # as wide as channels side by side
        columns = min(COLUMNS, len(x))
        path = context.folder / "samples" / f"cost_images_{context.split}_{context.weights}.png"
        pairs = torch.stack([images, maps], 1).flatten(0, 1)
        totals = [caption for cost in costs.flatten(1).sum(1) for caption in ("", f"{float(cost):.0f} {unit}")]
        titles = ["image, its cost", ""] * columns
        save_labelled(pairs, path, titles, totals, bar=(0.0, high, f"≥ {high:.3g} {unit} a pixel"))
