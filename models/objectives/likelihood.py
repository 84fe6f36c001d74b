"""Maximum likelihood, for every model whose score is a density or a bound on one."""

from __future__ import annotations

from torch import Tensor

from models.contracts import GenerativeModel, Kind, Loss, Objective
from models.units import bits_per_dim


class MaximumLikelihood(Objective):
    """Minimise the mean of -nats / dims: the negative log-likelihood (or bound) in nats per dimension.

    Dividing by the number of dimensions keeps learning rates and clipping thresholds comparable between image sizes, as
    the released PixelCNN++ and Glow codes do. Logs ``nll_bpd`` (``nll_nats`` for continuous data) and the mean of each term.
    """

    def forward(self, model: GenerativeModel, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        score = model(*batch)
        if Kind.UNNORMALIZED in score.kind:
            raise ValueError("objective=likelihood needs a normalized score; this model gives an energy: use objective=contrastive")
        nats = score.nats.mean()
        if model.spec.levels is None:
            return Loss(-nats / model.spec.dims, {"nll_nats": -nats.detach()})
        return Loss(-nats / model.spec.dims, {"nll_bpd": bits_per_dim(nats.detach(), model.spec.dims)})
