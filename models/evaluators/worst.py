"""The examples that a model finds least likely, which a mean hides."""

from __future__ import annotations

from math import inf

import torch

from models.build import ConfigError
from models.contracts import Kind
from models.evaluators.base import Context, Evaluator, record
from models.pictures import rgb, save_labelled
from models.units import bits_per_dim

QUANTILES = (0.5, 0.9, 0.99, 0.999)


class Worst(Evaluator):
    """``worst_bpd``: the highest bits/dim of an example of the split (``worst_nats``: nats, for continuous data).

    Its record has the ``mean``, the ``quantiles`` and the ``num`` worst ``examples`` by index; a score that is not finite counts
    as infinite and comes first. samples/worst_SPLIT_WEIGHTS.png shows them with their bits/dim, the worst first. Examples
    whose bits/dim explode (a test image outside what the scales of a flow were fitted to) are seen here and nowhere else.

    Raises ConfigError for an unnormalized score.
    """

    def __init__(self, num: int, columns: int):
        if min(num, columns) < 1:
            raise ValueError(f"evaluators.worst: num and columns must be at least 1; got {num} and {columns}")
        self.num, self.columns = num, columns

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        spec, kind, parts = context.model.spec, Kind.EXACT, []
        for index, x, y in context.batches("worst"):
            with context.noise("nll", int(index[0])):  # the noise of the nll, whose mean this takes apart
                score = context.model(x, y)
            if Kind.UNNORMALIZED in score.kind:
                raise ConfigError("this model's score is an energy, known up to a constant: take worst out of evaluators")
            kind |= score.kind
            parts.append((index, score.nats.double().cpu()))
        gathered = context.gather((kind, parts))
        parts = [part for _, each in gathered for part in each]
        if not parts:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        for other, _ in gathered:
            kind |= other
        index, nats = (torch.cat(column) for column in zip(*parts, strict=True))
        cost = (-nats if spec.levels is None else bits_per_dim(nats, spec.dims)).nan_to_num(nan=inf, posinf=inf)
        ranked = cost.sort(stable=True, descending=True)
        index, cost = index[ranked.indices], ranked.values
        unit, suffix = ("nats", "nats") if spec.levels is None else ("bits/dim", "bpd")
        found = record(
            f"worst_{suffix}", float(cost[0]), None, unit, kind.statement, len(cost),
            mean=float(cost.mean()),
            quantiles={str(q): float(cost[int((1 - q) * (len(cost) - 1))]) for q in QUANTILES},
            examples=[{"example": int(i), suffix: float(c)} for i, c in zip(index[: self.num], cost)],
        )  # fmt: skip
        if context.rank == 0 and spec.levels is not None:
            self._draw(context, index[: self.num], cost, found)
        return [found]

    def _draw(self, context: Context, index: torch.Tensor, cost: torch.Tensor, found: dict) -> None:
        images = rgb(context.datamodule.split(context.split)[index].x, context.model.spec.levels)
        title = f"highest bits/dim of {found['count']}: mean {found['mean']:.3f}, median {found['quantiles']['0.5']:.3f}"
        titles = [title] + [""] * (min(self.columns, len(index)) - 1)
        path = context.folder / "samples" / f"worst_{context.split}_{context.weights}.png"
        save_labelled(images, path, titles, [f"{float(c):.3f}" for c in cost[: len(index)]])
