"""An autoregressive distribution: a causal net, whose outputs parameterise a likelihood head at every pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.contracts import CausalNet, DataSpec, GenerativeModel, Kind, Likelihood, Score, check_batch


class Autoregressive(GenerativeModel):
    """log p(x | y) = sum_i log head(x_i | net(x_<i, y)) over pixels i in raster order; a pixel's channels belong to the head.

    ``net`` is called with ``shape`` (C, H, W), ``out_channels`` (what the head needs a pixel) and ``classes`` (None unless
    ``conditional``) and returns a CausalNet. The net is given reals: levels {0..K-1} scaled to [-1, 1] (continuous data as
    it is).

    Errors: ValueError when ``conditional`` and the data, or the batch, has no labels.
    """

    def __init__(self, spec: DataSpec, net: Callable[..., CausalNet], likelihood: Likelihood, conditional: bool):
        super().__init__()
        if conditional and spec.classes is None:
            raise ValueError("conditional: true needs data with labels, and this data has none (classes: null)")
        self.spec = spec
        self.conditional = conditional
        self.likelihood = likelihood
        self.net = net(
            shape=spec.shape, out_channels=likelihood.param_channels(), classes=spec.classes if conditional else None
        )

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        check_batch(x, self.spec)
        nats = self.likelihood.log_prob(self.net(self._reals(x), self._labels(y)), x)
        return Score(nats, Kind.EXACT, {"data": nats})

    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        dtype = self._dtype() if self.spec.levels is None else torch.uint8
        empty = torch.zeros(n, *self.spec.shape, dtype=dtype, device=next(self.parameters()).device)
        return self.complete(empty, 0, y, temperature)

    @torch.no_grad()
    def complete(self, x: Tensor, num_given: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Keep the first ``num_given`` pixels of ``x`` [n, C, H, W] in raster order and draw the others: like x.

        One pass of the net a pixel, or one cached step where the net has them: the same values under the same seed.
        """
        check_batch(x, self.spec)
        _, height, width = self.spec.shape
        x, y = x.clone(), self._labels(y)
        cache, previous = self.net.start(len(x), y), None
        for position in range(height * width):
            pixel = x[:, :, position // width, position % width]
            if cache is not None:
                params = self.net.step(previous, position, cache)
            elif position >= num_given:
                params = self.net(self._reals(x), y)[:, :, position // width, position % width]
            if position >= num_given:
                pixel.copy_(self.likelihood.sample(params[:, :, None, None], temperature)[:, :, 0, 0])
            previous = self._reals(pixel)
        return x

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _reals(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype())
        return x if self.spec.levels is None else x * (2 / (self.spec.levels - 1)) - 1

    def _labels(self, y: Tensor | None) -> Tensor | None:
        if self.conditional and y is None:
            raise ValueError("this model is class-conditional (conditional: true): give it labels y")
        return y if self.conditional else None
