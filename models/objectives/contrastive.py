"""Maximum likelihood of an energy-based model, by contrast with samples."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Loss, Objective
from models.energy.base import EnergyBased
from models.samplers.chains import Chains


class Contrastive(Objective):
    """Minimise mean energy(data) - mean energy(samples), whose gradient estimates that of -log p(data).

    d/dtheta (-log p) = E_data[dE/dtheta] - E_model[dE/dtheta] (Hinton 2002; Nijkamp et al. 2019, arXiv:1903.12370).
    ``data_noise`` is the standard deviation of Gaussian noise on the data's states, at least that of a step of the chains;
    ``penalty`` weighs mean energy^2 of both (Du & Mordatch 2019, arXiv:1903.08689).

    Logs ``energy_data_nats``, ``energy_model_nats``, their ``energy_difference_nats`` (d_t of 1903.12370, section 3: away
    from 0 the chains lag) and what the chains log (``langevin_drift``, their r_t). Reads the energy itself, not ``model(x)``,
    because the states carry noise.
    """

    def __init__(self, chains: Chains, data_noise: float, penalty: float):
        super().__init__()
        self.chains = chains
        self.data_noise = data_noise
        self.penalty = penalty

    def forward(self, model: EnergyBased, batch: tuple[Tensor, Tensor | None], step: int) -> Loss:
        """Raises ValueError for a model without an energy."""
        if not isinstance(model, EnergyBased):
            raise ValueError("objective=contrastive needs an energy-based model; for a density use objective=likelihood")
        u = model.relax(batch[0])
        if self.data_noise:
            u = u + self.data_noise * torch.randn_like(u)
        negatives, log = self.chains(model, len(u))
        energies = model.energy(torch.cat([u, negatives]))
        data, samples = energies[: len(u)].mean(), energies[len(u) :].mean()
        value = data - samples
        if self.penalty:
            value = value + self.penalty * energies.square().mean()
        log = log | {
            "energy_data_nats": data.detach(),
            "energy_model_nats": samples.detach(),
            "energy_difference_nats": (data - samples).detach(),
        }
        return Loss(value, log)
