"""A picture of a density of the plane: data, samples, density, and what a flow makes of a grid."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

from models.build import ConfigError
from models.contracts import Kind
from models.evaluators.base import Context, Evaluator, record
from models.flow.flow import Flow
from models.pictures import save_maps

REACH = 3.0
"""How far a grid of latents goes: three standard deviations of a normal base."""
POINTS = 400
"""Points of one of its lines."""


class Density2D(Evaluator):
    """Maps of ``num`` points of the split, of as many samples and of the density, on ``bins`` x ``bins`` cells.

    Written to samples/density2d_SPLIT_WEIGHTS.png.
    ``density2d_mass`` is the sum over the cells of density times area, where the model is normalized: at most 1, but for the
    error of the sum (midpoints), and lower by what lies outside the picture; that of a bound sums one draw of it in each cell.

    Of a flow with two latents there is also the image under its inverse of ``lines`` lines across and as many down, regular in
    latent space; where the inverse chooses, surjections take the residual 0 throughout: of an absolute value, the positive x.
    Raises ConfigError for data that are not points of the plane.
    """

    def __init__(self, num: int, bins: int, lines: int):
        if min(num, bins, lines) < 2:
            raise ValueError(f"evaluators.density2d: num, bins and lines must be at least 2; got {num}, {bins} and {lines}")
        self.num, self.bins, self.lines = num, bins, lines

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = context.model
        if model.spec.levels is not None or model.spec.dims != 2:
            raise ConfigError("density2d draws densities of the plane (data=toy2d and the like): take it out of evaluators")
        data = context.examples(self.num).x.flatten(1)
        centre, half = (data.amax(0) + data.amin(0)) / 2, float((data.amax(0) - data.amin(0)).max()) * 0.55
        edges = [numpy.linspace(float(c) - half, float(c) + half, self.bins + 1) for c in centre]
        with context.noise("density2d"):
            density, kind = self._density(context, edges)
            samples = model.sample(self.num).flatten(1)
            grid = self._grid(context, data)
        mass = float(numpy.nansum(density)) * (2 * half / self.bins) ** 2
        if context.rank == 0:
            counts = {
                name: numpy.histogram2d(*points.double().cpu().numpy().T, bins=edges)[0].T
                for name, points in (("data", data), ("samples", samples))
            }
            extent = (edges[0][0], edges[0][-1], edges[1][0], edges[1][-1])
            path = context.folder / "samples" / f"density2d_{context.split}_{context.weights}.png"
            brightest = numpy.quantile(density, 0.999)  # so that no thin spike darkens the rest
            save_maps(counts | {"density": density.clip(max=brightest)}, extent, path, grid)
        if Kind.UNNORMALIZED in kind:
            return []
        return [record("density2d_mass", mass, None, "share", "estimate", self.bins**2)]

    def _density(self, context: Context, edges: list[numpy.ndarray]) -> tuple[numpy.ndarray, Kind]:
        """exp(nats) at the midpoints of the cells [bins, bins], one row for each y; unnormalized, up to a factor."""
        x, y = (torch.from_numpy((e[1:] + e[:-1]) / 2).float() for e in edges)
        points = torch.cartesian_prod(y, x).flip(1).view(-1, *context.model.spec.shape)
        scores = [context.model.score(chunk.to(context.device)) for chunk in points.split(context.datamodule.eval_batch_size)]
        nats = torch.cat([score.nats for score in scores]).double().cpu()
        if Kind.UNNORMALIZED in scores[0].kind:
            nats = nats - nats.max()
        return nats.exp().view(self.bins, self.bins).numpy(), scores[0].kind

    def _grid(self, context: Context, data: Tensor) -> dict[str, numpy.ndarray]:
        model = context.model
        if not isinstance(model, Flow):
            return {}
        *residuals, top = model.encode(data[:1].view(1, *model.spec.shape).to(context.device))
        if top.numel() != 2:
            return {}
        along, across = torch.linspace(-REACH, REACH, POINTS), torch.linspace(-REACH, REACH, self.lines)
        down = torch.cartesian_prod(across, along)
        z = torch.cat([down, down.flip(1)]).to(top).view(-1, *top.shape[1:])
        x = model.decode_continuous([torch.zeros_like(r).expand(len(z), *r.shape[1:]) for r in residuals] + [z])
        return {"a grid of latents": x.view(-1, POINTS, 2).cpu().numpy()}
