"""The normaliser of an energy, by annealed importance sampling, and the likelihood it implies."""

from __future__ import annotations

from math import hypot, sqrt

import torch

from models.build import ConfigError
from models.energy.annealing import log_weights, schedule, tune_step_sizes
from models.energy.base import EnergyBased
from models.evaluators.base import Context, Evaluator, Statistics, non_finite, record
from models.samplers.hmc import HMC

_ENOUGH_CHAINS = 10


class AIS(Evaluator):
    """``log_z_nats`` (estimate), ``log_z_lower_nats`` (its stochastic lower bound E[w]) and ``ais_nll_nats`` (estimate).

    Chains anneal from the model's initial distribution to exp(-energy) in ``num_temperatures`` steps beta_k = (k/n)^power; HMC
    steps are sized beforehand, in a trial run, for the given ``acceptance``, from ``step_size``. Every record's ``space`` says
    what log Z sums or integrates over, so what the nll is a density of: for an energy of relaxed integers it is the density
    of the continuous relaxation on that space, never bits per dimension. Too few temperatures make log Z too
    small and the nll too good (Salakhutdinov & Murray 2008): trust them only where log_z_lower_nats is close and
    ``effective_chains``, (sum exp w)^2 / sum exp 2w, is many; below 10 no standard error is given, since none would be honest.
    Chains run ``chunk`` at a time, the same on any number of ranks.
    """

    def __init__(
        self,
        num_chains: int,
        num_temperatures: int,
        power: float,
        num_leapfrog: int,
        step_size: float,
        acceptance: float,
        chunk: int,
    ):
        if min(num_chains, num_temperatures) < 2:
            raise ValueError(f"ais needs at least two chains and two temperatures; got {num_chains} and {num_temperatures}")
        self.num_chains = num_chains
        self.num_temperatures = num_temperatures
        self.power = power
        self.num_leapfrog = num_leapfrog
        self.step_size = step_size
        self.acceptance = acceptance
        self.chunk = chunk

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        model = context.model
        if not isinstance(model, EnergyBased):
            raise ConfigError("ais estimates the normaliser of an energy; this model is not energy-based: use evaluators=[nll]")
        path = model.annealing_path(HMC(1, self.step_size, self.num_leapfrog))
        w = self._weights(context, path)
        relative = (w - w.max()).exp()
        log_z = float(w.max() + relative.mean().log())
        effective = float(relative.sum() ** 2 / relative.square().sum())
        stderr = float(relative.std() / relative.mean()) / sqrt(len(w)) if effective >= _ENOUGH_CHAINS else None

        nats = Statistics()
        for index, x, y in context.batches("ais"):
            nats.add(index, model(x, y).nats)
        nats = nats.merged(context)
        about = {"space": path.space, "effective_chains": round(effective, 2)}
        return [
            record("log_z_nats", log_z, stderr, "nats", "estimate", len(w), **about),
            record("log_z_lower_nats", float(w.mean()), float(w.std()) / sqrt(len(w)), "nats", "bound", len(w), **about),
            record(
                "ais_nll_nats",
                log_z - nats.mean,
                None if None in (stderr, nats.stderr) else hypot(stderr, nats.stderr),
                "nats",
                "estimate",
                nats.count,
                non_finite=non_finite(nats),
                **about,
            ),
        ]

    def _weights(self, context: Context, path) -> torch.Tensor:
        """Log weights [num_chains], chunk after chunk, each with noise of its own and on the rank whose turn it is."""
        betas = schedule(self.num_temperatures, self.power)
        with context.noise("ais", "tune"):
            sizes = tune_step_sizes(path, betas, min(self.chunk, 64), self.step_size, self.acceptance)
        chunks = range(0, self.num_chains, self.chunk)
        mine = {}
        for first in chunks[context.rank :: context.world]:
            with context.noise("ais", first):
                mine[first] = log_weights(path, betas, sizes, min(self.chunk, self.num_chains - first)).cpu()
        parts = {first: part for rank in context.gather(mine) for first, part in rank.items()}
        return torch.cat([parts[first] for first in chunks])
