"""The importance-weighted bound on the log-likelihood."""

from __future__ import annotations

from dataclasses import replace
from math import inf, log

import torch
from torch import Tensor
from tqdm import tqdm

from models.build import ConfigError
from models.contracts import GenerativeModel, Kind
from models.evaluators.base import Context, Evaluator, Statistics, non_finite, record
from models.objectives.importance_weighted import require_weights
from models.units import bits

CPU_SUBPIXELS, GPU_SUBPIXELS = 160_000, 10_000_000
"""Sub-pixels decoded at once where ``chunk`` is None: what a processor's cache holds (a tensor of five times as many takes
twice as long each, measured), and what fills a GPU."""


class ImportanceWeighted(Evaluator):
    """Mean over the split of -log (1/k) sum_i w_i: ``iw_nll_nats``, and ``iw_nll_bpd`` for data with levels.

    ``bound_gap_nats`` and ``bound_gap_bpd`` are what that gains over the one-sample bound -(1/k) sum_i log w_i of the same
    draws, which these records hold as ``bound``, beside the tighter one as ``iw_bound``: 0 for a model whose score is exact,
    and part of what a dequantization or a posterior loses. k and all settings are in each record.

    Burda et al. 2016 (arXiv:1509.00519, eq. 8 and section 5: k = 5000). Memory is bounded by ``chunk``, the most draws
    (examples times draws of each) made at once (None: as many as suit the device); the logsumexp streams over
    chunks. ``stderr`` is over examples.

    Raises ConfigError for scores whose exponential may not be averaged (analytic KL, noisy, unnormalized).
    """

    def __init__(self, k: int, chunk: int | None):
        if k < 1 or (chunk is not None and chunk < 1):
            raise ValueError(f"importance_weighted needs k and chunk of at least 1; got k={k}, chunk={chunk}")
        self.k, self.chunk = k, chunk

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        spec, nats, gaps, kind = context.model.spec, Statistics(), Statistics(), Kind.EXACT
        subpixels = CPU_SUBPIXELS if torch.device(context.device).type == "cpu" else GPU_SUBPIXELS
        chunk = self.chunk or max(1, subpixels // spec.dims)
        size = max(1, chunk // self.k)  # examples at once
        total = -(-context.datamodule.num_examples(context.split) // context.world)
        description = f"importance weights, k={self.k} ({context.split}, {context.weights})"
        hidden = not context.progress or context.rank > 0
        with tqdm(total=total, desc=description, disable=hidden, leave=False, dynamic_ncols=True) as bar:
            for index, x, y in replace(context, progress=False).batches("importance_weighted"):
                with context.noise("importance_weighted", int(index[0])):
                    for start in range(0, len(x), size):
                        part = slice(start, start + size)
                        values, single, one = self._bounds(context.model, x[part], None if y is None else y[part], chunk)
                        kind |= one
                        nats.add(index[part], values)
                        gaps.add(index[part], values - single)
                        bar.update(len(values))
        for other in context.gather(kind):
            kind |= other
        nats, gaps = nats.merged(context), gaps.merged(context)
        if nats.count == 0:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        common = {"count": nats.count, "non_finite": non_finite(nats)}
        units = [("nats", "nats", lambda value: value)]
        if spec.levels is not None:
            units.append(("bpd", "bits/dim", lambda value: bits(value) / spec.dims))
        records = []
        for suffix, unit, convert in units:
            value, gap = convert(-nats.mean), convert(inf if gaps.bad else gaps.mean)
            errors = [None if found.stderr is None else convert(found.stderr) for found in (nats, gaps)]
            both = {"bound": value + gap, "iw_bound": value}
            records.append(record(f"iw_nll_{suffix}", value, errors[0], unit, kind.statement, **common))
            records.append(record(f"bound_gap_{suffix}", gap, errors[1], unit, "estimate", gaps.count, **both))
        return records

    def _bounds(self, model: GenerativeModel, x: Tensor, y: Tensor | None, chunk: int) -> tuple[Tensor, Tensor, Kind]:
        """log (1/k) sum_i w_i and (1/k) sum_i log w_i, both [B], and the kind of the weights."""
        total, kind = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device), Kind.EXACT
        single = torch.zeros_like(total)
        for done in range(0, self.k, chunk):
            score = model(x, y, min(chunk, self.k - done))
            require_weights(score)
            kind |= score.kind
            total = torch.logaddexp(total, torch.logsumexp(score.nats.double(), 1))
            single += score.nats.double().sum(1)
        return total - log(self.k), single / self.k, kind
