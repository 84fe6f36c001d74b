"""Independent Bernoulli sub-pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import DataSpec, Likelihood
from models.likelihoods.levels import at_least_float32, require_levels
from models.likelihoods.noise import logistic_like


class Bernoulli(Likelihood):
    """P(x = 1) = sigmoid(l), one logit l a sub-pixel: ``params`` [B, C, H, W]. Zero output is a fair coin.

    ``temperature`` T divides the logit. Raises ValueError unless the data has 2 levels.
    """

    def __init__(self, spec: DataSpec):
        super().__init__()
        levels = require_levels(spec, "bernoulli")
        if levels != 2:
            raise ValueError(
                f"likelihood=bernoulli needs data with 2 levels, but this data has {levels}: choose likelihood=categorical, "
                "discretized_logistic, mixture_logistic or discretized_gaussian"
            )
        self.spec = spec
        self.groups = spec.shape[0]

    def param_channels(self) -> int:
        return self.spec.shape[0]

    def log_prob_map(self, params: Tensor, x: Tensor) -> Tensor:
        logits = at_least_float32(params)
        return F.logsigmoid(logits * (2 * x.to(logits.dtype) - 1))

    def log_pmf(self, params: Tensor, x: Tensor, channel: int, temperature: float = 1.0) -> Tensor:
        logits = at_least_float32(params)[:, channel] / temperature
        return F.logsigmoid(torch.stack([-logits, logits], 1))

    def sample(self, params: Tensor, temperature: float = 1.0) -> Tensor:
        logits = at_least_float32(params)
        return (logits + temperature * logistic_like(logits) > 0).to(torch.uint8)

    def mean(self, params: Tensor) -> Tensor:
        return at_least_float32(params).sigmoid()
