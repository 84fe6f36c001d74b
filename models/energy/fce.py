"""Flow contrastive estimation: an energy that learns its own normaliser against a flow that learns to match it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.contracts import DataSpec, GenerativeModel, Score
from models.flow.flow import Flow
from models.nn.data_init import DataInitialized


class NormalizedEnergy(DataInitialized):
    """log p(v) = -energy(v) - log Z over reals v [B, C, H, W], with log Z a parameter: normalised only as far as it is learned.

    The net sees 2 v - 1 where v are integers dequantized to [0, 1], and v itself for continuous data. The parameter is
    ``log_z_per_dim`` = log Z / D, so that an optimizer's step moves log Z in proportion to the data's size (our choice). It
    starts where the mean of log p over the first batch is that of the noise which p is contrasted with.
    """

    def __init__(self, spec: DataSpec, net: nn.Module):
        super().__init__()
        self.spec = spec
        self.net = net
        self.log_z_per_dim = nn.Parameter(torch.zeros(()))

    @property
    def log_z(self) -> Tensor:
        return self.spec.dims * self.log_z_per_dim

    def energy(self, v: Tensor) -> Tensor:
        """Nats [B]."""
        return self.net(v if self.spec.levels is None else 2.0 * v - 1.0)

    def log_prob(self, v: Tensor) -> Tensor:
        """Nats [B]."""
        self.require_initialized()
        return -self.energy(v) - self.log_z

    def match(self, v: Tensor, nats: Tensor) -> None:
        """Set log Z such that the mean of log p(v) is ``nats`` []."""
        self.log_z_per_dim.copy_((-self.energy(v).mean() - nats) / self.spec.dims)


class FlowContrastive(GenerativeModel):
    """A flow q and an energy-based p, two densities over the same reals (Gao et al. 2020, arXiv:1912.00589).

    These are the reals v that the flow is a density of: integers dequantized to [0, 1]^D, or continuous data as they are. Both
    are densities with respect to dv on R^D, so their ratio needs no Jacobian. Scores and samples are the flow's, so
    evaluation judges the flow; what the energy learned is ``log_ratio`` and ``ebm.log_prob``.
    """

    def __init__(self, spec: DataSpec, flow: Flow, net: nn.Module):
        super().__init__()
        if flow.dequantization is not None and not flow.dequantization.unit_interval:
            raise ValueError("an energy of images is over [0, 1]: choose dequantization=uniform or dequantization=variational")
        self.spec = spec
        self.flow = flow
        self.ebm = NormalizedEnergy(spec, net)

    def score(self, x: Tensor, y: Tensor | None = None) -> Score:
        score = self.flow.score(x, y)
        if self.ebm.initializing:
            v, contribution = self.reals(x)
            self.ebm.match(v, (score.nats - contribution).mean())
        return score

    def sample(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        return self.flow.sample(n, y, temperature)

    def sample_continuous(self, n: int, y: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Draws of the flow before they become data: reparameterised points v of the space both densities share."""
        return self.flow.sample_continuous(n, y, temperature)

    def reals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Data to (v, contribution [B]): a point of the space both densities share, and log p(v) -> log P(x)."""
        return (x, x.new_zeros(len(x))) if self.spec.levels is None else self.flow.dequantization(x)

    def log_ratio(self, v: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(log p(v) - log q(v), log q(v)), both [B]; the first is the logit of 'data' against 'flow' at equal odds."""
        nats = self.flow.score_continuous(v, y).nats
        return self.ebm.log_prob(v) - nats, nats
