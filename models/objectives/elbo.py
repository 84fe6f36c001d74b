"""The evidence lower bound, with a weighted rate, free bits and warm-up."""

from __future__ import annotations

from torch import Tensor

from models.contracts import GenerativeModel, Kind, Loss, Objective
from models.units import bits_per_dim


class ELBO(Objective):
    """Minimise distortion + w(step) * beta * sum_g max(free_nats, rate_g), in nats, the mean over the batch.

    rate_g is the mean of KL(q || p) of latent group g (the score's terms "kl" or "kl/g", negated), distortion the mean
    of everything else, negated. beta: Higgins et al. 2017. w rises linearly from ``warmup_start`` to 1 over
    ``warmup_steps`` (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 20; Soenderby et al. 2016, arXiv:1602.02282).
    ``free_nats`` is the lambda of Kingma et al. 2016 (arXiv:1606.04934, appendix C.8): below it a group's rate is free;
    it is not scaled by beta or w. Logs the bound itself, whatever the weights: ``elbo_nats``, ``rate_nats``,
    ``distortion_nats`` and, for data with levels, ``nll_bpd``.
    """

    def __init__(self, beta: float, free_nats: float, warmup_steps: int, warmup_start: float):
        super().__init__()
        self.beta, self.free_nats = beta, free_nats
        self.warmup_steps, self.warmup_start = warmup_steps, warmup_start

    def kl_weight(self, step: int) -> float:
        """beta * w(step)."""
        if step >= self.warmup_steps:
            return self.beta
        return self.beta * (self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps)

    def forward(self, model: GenerativeModel, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        score = model(*batch)
        if Kind.UNNORMALIZED in score.kind:
            raise ValueError("objective=elbo needs a normalized score; this model gives an energy: use objective=contrastive")
        rates = [-term.mean() for name, term in score.terms.items() if name.split("/")[0] == "kl"]
        elbo = score.nats.mean()
        rate = sum(rates, elbo.new_zeros(()))
        distortion = -elbo - rate
        charged = sum((r.clamp(min=self.free_nats) if self.free_nats else r for r in rates), elbo.new_zeros(()))
        elbo, rate = elbo.detach(), rate.detach()
        log = {"elbo_nats": elbo, "rate_nats": rate, "distortion_nats": distortion.detach()}
        if model.spec.levels is not None:
            log["nll_bpd"] = bits_per_dim(elbo, model.spec.dims)
        return Loss(distortion + self.kl_weight(step) * charged, log)
