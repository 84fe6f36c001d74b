"""Energies of data against those of samples."""

from __future__ import annotations

from math import hypot

import torch

from models.build import ConfigError
from models.energy.base import EnergyBased
from models.evaluators.base import Context, Evaluator, Statistics, non_finite, record


class Energies(Evaluator):
    """``energy_data_nats``, ``energy_model_nats`` (of ``num`` of the model's samples) and ``energy_difference_nats``.

    The first two hold an unknown constant; their difference does not: it is 0 where chains reach the model and the model the
    data, above 0 where data are less likely than samples (d_t of Nijkamp et al. 2019, arXiv:1903.12370, on data never trained
    on). Samples count before they are rounded to levels.
    """

    def __init__(self, num: int):
        if num < 2:
            raise ValueError(f"the energy evaluator needs at least two samples; got num={num}")
        self.num = num

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = context.model
        if not isinstance(model, EnergyBased):
            raise ConfigError("this model has no energy: use evaluators=[nll]")
        data, drawn = Statistics(), Statistics()  # of -energy
        for index, x, y in context.batches("energy"):
            data.add(index, model(x, y).nats)
        data = data.merged(context)
        if data.count == 0:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        with context.noise("energy"):
            drawn.add(torch.arange(self.num), -model.energy(model.move(model.start(self.num))[0]))
        error = None if data.stderr is None or drawn.stderr is None else hypot(data.stderr, drawn.stderr)
        both = [("energy_data_nats", data), ("energy_model_nats", drawn)]
        return [
            *(record(name, -s.mean, s.stderr, "nats", "unnormalized", s.count, non_finite=non_finite(s)) for name, s in both),
            record("energy_difference_nats", drawn.mean - data.mean, error, "nats", "estimate", data.count),
        ]
