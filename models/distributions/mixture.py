"""A mixture of factorised Gaussians over vectors."""

from math import log, pi

import torch
from torch import Tensor

from models.contracts import Distribution
from models.distributions.normal import expand_batch, full_precision


class GaussianMixture(Distribution):
    """log p(z) = logsumexp_m [log w_m + log N(z; mean_m, scale_m^2)], w = softmax(logits), over events [D].

    ``logits`` [B|1, M], ``mean`` and ``log_scale`` [B|1, M, D]. A draw is reparameterised within the component it
    chose; the choice itself passes no gradient to ``logits``.
    """

    def __init__(self, logits: Tensor, mean: Tensor, log_scale: Tensor):
        self.log_weights = torch.log_softmax(full_precision(logits), -1)
        self.mean, self.log_scale = full_precision(mean), full_precision(log_scale)

    def log_prob(self, z: Tensor) -> Tensor:
        standard = (z.unsqueeze(1) - self.mean) * torch.exp(-self.log_scale)
        by_component = (-0.5 * (standard * standard + log(2 * pi)) - self.log_scale).sum(-1)
        return torch.logsumexp(self.log_weights + by_component, -1)

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draws [n, D]; ``temperature`` scales each component's standard deviation."""
        weights = expand_batch(self.log_weights, n).exp()
        chosen = torch.multinomial(weights, 1).unsqueeze(-1).expand(-1, -1, self.mean.shape[-1])
        mean, log_scale = (expand_batch(t, n).gather(1, chosen).squeeze(1) for t in (self.mean, self.log_scale))
        return mean + temperature * torch.exp(log_scale) * torch.randn_like(mean)
