"""The importance-weighted bound."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from models.build import ConfigError
from models.contracts import GenerativeModel, Loss, Objective, Score
from models.units import bits_per_dim


def require_weights(score: Score) -> None:
    """ConfigError unless exp(nats) of this kind of score may be averaged over draws."""
    if not score.kind.may_average_weights:
        raise ConfigError(
            f"importance weighting needs scores with E[exp nats] = p(x), but this model's are {score.kind.name}: "
            "for a VAE set model.analytic_kl=false; other models have no importance-weighted bound"
        )


class ImportanceWeighted(Objective):
    """Minimise -L_k, L_k = E[log (1/k) sum_i w_i] <= log p(x), w_i = p(x, z_i) / q(z_i | x), in nats.

    Burda et al. 2016 (arXiv:1509.00519, eq. 8); k = 1 is the ELBO. Logs ``iw_elbo_nats`` (L_k) and, for data with
    levels, ``nll_bpd``.
    """

    def __init__(self, k: int):
        super().__init__()
        if k < 1:
            raise ValueError(f"objective.k must be 1 or more; got {k}")
        self.k = k

    def forward(self, model: GenerativeModel, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        score = model(*batch, self.k)
        require_weights(score)
        bound = (torch.logsumexp(score.nats, 1) - log(self.k)).mean()
        logged = {"iw_elbo_nats": bound.detach()}
        if model.spec.levels is not None:
            logged["nll_bpd"] = bits_per_dim(bound.detach(), model.spec.dims)
        return Loss(-bound, logged)
