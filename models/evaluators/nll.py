"""The negative log-likelihood, or the bound on it that the model's score states."""

from __future__ import annotations

from collections import defaultdict

import torch

from models.build import ConfigError
from models.contracts import Kind
from models.evaluators.base import Context, Evaluator, Statistics, non_finite, record
from models.units import bits, bits_per_dim


class NLL(Evaluator):
    """Mean of -score over the split: ``nll_nats``, and ``nll_bpd`` for data with levels.

    The kind is the score's ("exact", "bound", "estimate"); ``terms`` holds the mean of each of its terms in nats. Where there
    is a KL, -E log p(x|z) is reported as ``distortion_nats`` and the rest as ``rate_nats`` (Alemi et al. 2018,
    arXiv:1711.00464). A score that is not finite makes the value infinite, and ``non_finite`` names the examples.

    Raises ConfigError for an unnormalized score: an energy is no likelihood.
    """

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        spec = context.model.spec
        nats, terms, kind = Statistics(), defaultdict(Statistics), Kind.EXACT
        for index, x, y in context.batches("nll"):
            with context.noise("nll", int(index[0])):
                score = context.model(x, y)
            if Kind.UNNORMALIZED in score.kind:
                raise ConfigError(
                    "this model's score is an energy, known up to a constant: there is no nll; use evaluators=[ais]"
                )
            kind |= score.kind
            nats.add(index, score.nats)
            for name, term in score.terms.items():
                terms[name].add(index, term)
        for other in context.gather(kind):
            kind |= other
        nats = nats.merged(context)
        if nats.count == 0:
            raise ConfigError(f"{context.datamodule.name} has no examples in split={context.split}: choose another split")
        names = [name for part in context.gather(list(terms)) for name in part]
        terms = {name: terms[name].merged(context) for name in dict.fromkeys(names)}

        means = {name: part.mean for name, part in terms.items()}
        statement = kind.statement
        common = {"count": nats.count, "non_finite": non_finite(nats)}
        records = [record("nll_nats", -nats.mean, nats.stderr, "nats", statement, terms=means, **common)]
        if spec.levels is not None:
            stderr = None if nats.stderr is None else bits(nats.stderr) / spec.dims
            records.insert(0, record("nll_bpd", bits_per_dim(nats.mean, spec.dims), stderr, "bits/dim", statement, **common))
        if any(name.partition("/")[0] == "kl" for name in means):
            data = terms["data"]
            records += [
                record("distortion_nats", -data.mean, data.stderr, "nats", "estimate", data.count),
                record("rate_nats", data.mean - nats.mean, None, "nats", "estimate", nats.count),
            ]
        return records
