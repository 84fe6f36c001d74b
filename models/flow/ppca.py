"""Probabilistic principal component analysis of images."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from models.contracts import Bijection, DataSpec, check_batch
from models.distributions.bases import StandardNormal
from models.flow.flat import Flat
from models.flow.flow import Flow
from models.transforms.dequantize import UniformDequantization
from models.transforms.ppca import ProbabilisticPCA


class PPCA(Flow):
    """x ~ N(mean, W W^T + sigma^2 I) over reals, W of ``rank`` columns (Tipping & Bishop 1999): a flow of one linear map.

    It starts at the maximum likelihood of the initialising batch; ``models.nn.data_init.initialize(model, x)`` with all
    training data is the closed-form fit, training by gradients leads to the same density.
    """

    def __init__(
        self, spec: DataSpec, dequantization: UniformDequantization | None, preprocess: Bijection | None, rank: int
    ):
        architecture = Flat(0, {}, {"pca": partial(ProbabilisticPCA, rank=rank)})
        super().__init__(spec, dequantization, preprocess, architecture, StandardNormal, False)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """x from the posterior mean of its ``rank`` latent variables: levels, float [B, C, H, W]."""
        check_batch(x, self.spec)
        v = x if self.dequantization is None else self.dequantization.midpoint(x)
        *before, last = self.transforms
        for transform in before:
            v, _ = transform(v)
        flatten, pca = last.parts
        v = flatten.inverse(pca.decode(pca.encode(flatten(v)[0])))
        for transform in reversed(before):
            v = transform.inverse(v)
        return v if self.dequantization is None else (v * self.spec.levels - 0.5).clamp(0, self.spec.levels - 1)
