"""What a model that knows each sub-pixel's histogram and nothing else would score: the number to beat."""

from __future__ import annotations

import math

import torch

from models.build import ConfigError
from models.evaluators.base import Context, Evaluator, Statistics, record
from models.units import bits, bits_per_dim


class Baseline(Evaluator):
    """Independent sub-pixels, fitted to the training split and scored on the evaluated one.

    With levels: P(x_d = k) = (n_dk + 1) / (N + K), from counts n_dk over N training images; reported as
    ``independent_pixel_bpd``. Continuous data: normals of the training mean and deviation, ``independent_normal_nats``.
    """

    about_data = True

    def __call__(self, context: Context) -> list[dict]:
        spec = context.model.spec
        nats = self._histograms(context) if spec.levels is not None else self._normals(context)
        if nats.count == 0:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        if spec.levels is None:
            return [record("independent_normal_nats", -nats.mean, nats.stderr, "nats", "exact", nats.count)]
        stderr = None if nats.stderr is None else bits(nats.stderr) / spec.dims
        value = bits_per_dim(nats.mean, spec.dims)
        return [record("independent_pixel_bpd", value, stderr, "bits/dim", "exact", nats.count)]

    @staticmethod
    def _histograms(context: Context) -> Statistics:
        spec, statistics = context.model.spec, Statistics()
        cells = spec.dims * spec.levels
        first = torch.arange(spec.dims) * spec.levels
        counts, examples = torch.zeros(cells, dtype=torch.long), 0
        for _, x, _ in context.batches("baseline", "train"):
            counts += torch.bincount((x.cpu().long().flatten(1) + first).flatten(), minlength=cells)
            examples += len(x)
        counts, examples = (sum(parts) for parts in zip(*context.gather((counts, examples)), strict=True))
        log_p = (counts.double() + 1).log() - math.log(examples + spec.levels)
        for index, x, _ in context.batches("baseline"):
            statistics.add(index, log_p[x.cpu().long().flatten(1) + first].sum(1))
        return statistics.merged(context)

    @staticmethod
    def _normals(context: Context) -> Statistics:
        statistics = Statistics()
        x = context.datamodule.split("train").x.double().flatten(1)
        normal = torch.distributions.Normal(x.mean(0), x.std(0))
        for index, x, _ in context.batches("baseline"):
            statistics.add(index, normal.log_prob(x.cpu().double().flatten(1)).sum(1))
        return statistics.merged(context)
