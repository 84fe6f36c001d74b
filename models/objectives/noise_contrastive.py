"""The noise-contrastive game of an energy and a flow (Gao et al. 2020, arXiv:1912.00589)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.contracts import Loss, Objective
from models.energy.fce import FlowContrastive
from models.units import bits_per_dim


def _value(real: Tensor, fake: Tensor) -> Tensor:
    """V = E_data[log p / (p + q)] + E_q[log q / (p + q)], from log p - log q at data and at flow samples: [B], [B] -> []."""
    return F.logsigmoid(real).mean() + F.logsigmoid(-fake).mean()


def _log(value: Tensor, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """The value (-2 log 2 when the flow cannot be told from the data) and how often its sign tells data from samples."""
    accuracy = 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())
    return {"value_nats": value.detach(), "accuracy": accuracy}


class EnergyPlayer(Objective):
    """The energy maximises V: noise contrastive estimation (Gutmann & Hyvarinen 2012) with the flow as the noise.

    Its optimum has p equal to the data's density, log Z included, for any noise that covers the data. No gradient reaches the
    flow. Logs ``value_nats``, ``accuracy`` and ``log_z_nats``. It reads both densities at reals, not ``model(x)``.
    """

    def forward(self, model: FlowContrastive, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        """Raises ValueError for a model that is not a flow and an energy."""
        _require_players(model)
        x, y = batch
        with torch.no_grad():
            v = torch.cat([model.reals(x)[0], model.sample_continuous(len(x), y)])
            noise = model.flow.score_continuous(v, None if y is None else torch.cat([y, y])).nats
        real, fake = (model.ebm.log_prob(v) - noise).chunk(2)
        value = _value(real, fake)
        return Loss(-value, _log(value, real, fake) | {"log_z_nats": model.ebm.log_z.detach()})


class FlowPlayer(Objective):
    """The flow minimises V, which at the energy's optimum is twice its Jensen-Shannon divergence from the data (- 2 log 2).

    Gradients pass through the samples, log q at the samples, and log q at the data. For the first ``pretrain_steps`` the flow
    maximises its likelihood instead, while the energy already learns against it: a start from maximum likelihood in one run.
    Deviation: players alternate at the fixed rates of the game, not by how well the energy tells flow from data.
    Logs ``value_nats``, ``accuracy`` and the flow's ``nll_bpd`` (``nll_nats`` for continuous data).
    """

    def __init__(self, pretrain_steps: int):
        super().__init__()
        self.pretrain_steps = pretrain_steps

    def forward(self, model: FlowContrastive, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        """Raises ValueError for a model that is not a flow and an energy."""
        _require_players(model)
        x, y = batch
        v, contribution = model.reals(x)
        real, nats = model.log_ratio(v, y)
        nats = (nats + contribution).mean()
        if model.spec.levels is None:
            log = {"nll_nats": -nats.detach()}
        else:
            log = {"nll_bpd": bits_per_dim(nats.detach(), model.spec.dims)}
        if step < self.pretrain_steps:
            return Loss(-nats / model.spec.dims, log)
        fake, _ = model.log_ratio(model.sample_continuous(len(x), y), y)
        value = _value(real, fake)
        return Loss(value, log | _log(value, real.detach(), fake.detach()))


def _require_players(model) -> None:
    if not isinstance(model, FlowContrastive):
        raise ValueError("objective=noise_contrastive needs a flow and an energy that play against each other: choose model=fce")
