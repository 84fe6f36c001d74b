"""K-way categorical sub-pixels, with no order among the levels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import DataSpec, Likelihood
from models.likelihoods.levels import at_least_float32, require_levels
from models.likelihoods.noise import gumbel_like


class Categorical(Likelihood):
    """P(x = k) = softmax(l)_k: ``params`` [B, C K, H, W], sub-pixel c owning the channels c K to c K + K - 1.

    Zero output is uniform over the levels. ``temperature`` T divides the logits. Source: van den Oord et al. 2016,
    arXiv:1601.06759, section 2.
    """

    def __init__(self, spec: DataSpec):
        super().__init__()
        self.spec = spec
        self.groups = spec.shape[0]
        self.levels = require_levels(spec, "categorical")

    def param_channels(self) -> int:
        return self.spec.shape[0] * self.levels

    def _logits(self, params: Tensor) -> Tensor:
        """[B, C, K, H, W]"""
        return at_least_float32(params).unflatten(1, (-1, self.levels))

    def log_prob_map(self, params: Tensor, x: Tensor) -> Tensor:
        logits = self._logits(params).flatten(0, 1)
        nll = F.cross_entropy(logits, x.long().flatten(0, 1), reduction="none")
        return -nll.unflatten(0, x.shape[:2])

    def log_pmf(self, params: Tensor, x: Tensor, channel: int, temperature: float = 1.0) -> Tensor:
        return (self._logits(params)[:, channel] / temperature).log_softmax(1)

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        logits = self._logits(params)
        return (logits + temperature * gumbel_like(logits)).argmax(2).to(torch.uint8)

    def mean(self, params: Tensor) -> Tensor:
        probabilities = self._logits(params).softmax(2)
        levels = torch.arange(self.levels, dtype=probabilities.dtype, device=probabilities.device)
        return (probabilities * levels[:, None, None]).sum(2)
