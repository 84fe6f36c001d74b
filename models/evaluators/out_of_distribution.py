"""Whether the likelihood tells the data of the run from other data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import torch
from torch import Tensor

from datamodules.base import DataModule
from models.build import ConfigError
from models.contracts import Kind
from models.evaluators.base import Context, Evaluator, Statistics, evenly_spaced, non_finite, record
from models.pictures import save_histograms
from models.units import bits_per_dim


class OutOfDistribution(Evaluator):
    """``ood_auroc``: how often an image of the run's data scores higher than one of ``other`` data, ties counted half.

    1 tells them apart, 0.5 does not at all, and **below 0.5 the other data are the likelier ones**: the known failure of
    likelihood as a detector (Nalisnick et al. 2019, arXiv:1810.09136: models of CIFAR-10 prefer SVHN, models of Fashion-MNIST
    prefer MNIST). It stands as it is found. Its error is DeLong's. ``ood_data_bpd`` and ``ood_other_bpd`` are the mean
    scores of the two sets, in nats where bits would mean nothing (continuous data, energies). The same split of both,
    ``num`` evenly spaced examples of each (None: all), without labels. Every record names the ``other`` data and their
    ``other_sha256``; samples/out_of_distribution_OTHER_SPLIT_WEIGHTS.png shows both histograms.

    ``other`` is a factory of a data module: it is given the data root and the evaluation batch of the run's own.
    Raises ConfigError where the other data has another shape or other levels, and for a model that needs labels.
    """

    def __init__(self, other: Callable[..., DataModule], num: int | None):
        if num is not None and num < 2:
            raise ValueError(f"evaluators.out_of_distribution.num must be at least 2, or null for all; got {num}")
        self._make, self.num = other, num
        self.other = ""  # the name of the data, once it is made

    @torch.no_grad()
    def __call__(self, context: Context) -> list[dict]:
        spec, data = context.model.spec, context.datamodule
        other = self._make(root=str(data.root), eval_batch_size=data.eval_batch_size)
        self.other = other.name
        if (other.spec.shape, other.spec.levels) != (spec.shape, spec.levels):
            raise ConfigError(
                f"{other.name} has images {other.spec.shape} of {other.spec.levels} levels, and the model's are {spec.shape} of "
                f"{spec.levels}: choose data that fit, data@other=..."
            )
        about = {"other": other.name, "other_sha256": other.checksum(context.split)}
        (mine, kind), (theirs, _) = (self._nats(context, each) for each in (data, other))
        value, error = auroc(mine, theirs)
        in_bits = spec.levels is not None and Kind.UNNORMALIZED not in kind
        unit, suffix = ("bits/dim", "bpd") if in_bits else ("nats", "nats")
        cost = (lambda nats: bits_per_dim(nats, spec.dims)) if in_bits else (lambda nats: -nats)
        records = [record("ood_auroc", value, error, "auroc", "estimate", len(mine) + len(theirs), **about)]
        for name, nats in (("data", mine), ("other", theirs)):
            found = Statistics()
            found.add(torch.arange(len(nats)), cost(nats))
            mean = -found.mean if found.bad else found.mean
            common = {"non_finite": non_finite(found), **about}
            records.append(record(f"ood_{name}_{suffix}", mean, found.stderr, unit, kind.statement, found.count, **common))
        if context.rank == 0:
            path = context.folder / "samples" / f"out_of_distribution_{other.name}_{context.split}_{context.weights}.png"
            shown = {f"{data.name} (the run's)": cost(mine), f"{other.name} (other)": cost(theirs)}
            label = f"{unit}, smaller is likelier" + (" (up to a constant)" if Kind.UNNORMALIZED in kind else "")
            save_histograms(shown, path, label, f"AUROC {value:.3f}" + (": the other data are likelier" if value < 0.5 else ""))
        return records

    def _nats(self, context: Context, data: DataModule) -> tuple[Tensor, Kind]:
        """The scores of the chosen examples [n] in float64, in their order, and their kind."""
        count = data.num_examples(context.split)
        if count == 0:
            raise ConfigError(f"{data.name} has no examples in split={context.split}: choose another split")
        chosen, kind, parts = evenly_spaced(count, self.num), Kind.EXACT, []
        for index, x, _ in replace(context, datamodule=data).batches(f"out_of_distribution, {data.name}"):
            keep = torch.isin(index, chosen)
            if keep.any():
                with context.noise("out_of_distribution", data.name, int(index[0])):
                    score = self._score(context.model, x[keep.to(x.device)])
                kind |= score.kind
                parts.append((int(index[0]), score.nats.double().cpu()))
        every = [part for rank in context.gather(parts) for part in rank]
        for one in context.gather(kind):
            kind |= one
        return torch.cat([nats for _, nats in sorted(every, key=lambda part: part[0])]), kind

    @staticmethod
    def _score(model, x: Tensor):
        try:
            return model(x, None)
        except ValueError as error:
            raise ConfigError(f"out_of_distribution scores images without labels, and {error}") from error


def auroc(positive: Tensor, negative: Tensor) -> tuple[float, float | None]:
    """P(positive > negative) + P(equal) / 2 over all pairs of scores [m], [n], and its standard error.

    The mean of the placement values V_i = share of negatives below positive i (an equal one half); its variance is
    var(V) / m + var(W) / n, W_j being the share of positives above negative j (DeLong et al. 1988, Biometrics 44,
    eq. 5-6; by sorting: Sun & Xu 2014). NaN counts as the lowest score. None where a set has a single score.
    """
    positive, negative = (torch.nan_to_num(t, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf) for t in (positive, negative))

    def placements(of: Tensor, among: Tensor) -> Tensor:
        among = among.sort().values
        return (torch.searchsorted(among, of) + torch.searchsorted(among, of, right=True)).double() / (2 * len(among))

    above, below = placements(positive, negative), 1 - placements(negative, positive)
    if min(len(above), len(below)) < 2:
        return float(above.mean()), None
    return float(above.mean()), sqrt(float(above.var()) / len(above) + float(below.var()) / len(below))
