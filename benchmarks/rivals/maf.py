"""Masked autoregressive flows of two libraries at the size of ours: what ``benchmarks.training`` holds it against.

All have 5 affine steps of a masked perceptron with two hidden layers of 512 and an order reversed between steps, over 63 numbers
and a standard normal. Between steps ours has an ActNorm, nflows a batch normalisation (the paper's) and zuko nothing. normflows
is not here: its masked steps are fast from base to data, so that a density takes it one pass a dimension.
"""

from __future__ import annotations

import zuko
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.transforms.autoregressive import MaskedAffineAutoregressiveTransform
from nflows.transforms.base import CompositeTransform
from nflows.transforms.normalization import BatchNorm
from nflows.transforms.permutations import ReversePermutation

from benchmarks.rivals.libraries import NFlows, Zuko

OVERRIDES = ("experiment=maf_bsds300", "data.batch_size=512")
"""D = 63, 5 steps, two hidden layers of 512, batch 512."""

VARIANTS = {}
"""Further forms of ours, each by what it changes in the config."""

SPEED = (("ours", "zuko", 1.0), ("ours", "nflows", 1.0), ("ours compiled", "ours", None))
"""Ratios of examples a second and what they must reach."""

SAMPLING = (("ours", "zuko", 10.0), ("ours", "nflows", None))
"""Ratios of samples a second and what they must reach."""

MEMORY = (("ours", "zuko", 0.9), ("ours", "nflows", 0.9))
"""Ratios of peak memory and their upper bounds."""


def size_of(model) -> tuple[int, int, list[int]]:
    """Dimensions, steps and hidden widths of ours."""
    chain = model.transforms[-1].parts
    nets = [part.net for part in chain if hasattr(part, "net")]
    return model.spec.dims, len(nets), [layer.out_features for layer in nets[0].hidden]


def zuko_flow(model) -> Zuko:
    dims, steps, hidden = size_of(model)
    return Zuko(zuko.flows.MAF(dims, transforms=steps, hidden_features=hidden))


def nflows_flow(model) -> NFlows:
    dims, steps, hidden = size_of(model)
    parts = []
    for _ in range(steps):
        made = MaskedAffineAutoregressiveTransform(dims, hidden[0], num_blocks=len(hidden) - 1, use_residual_blocks=False)
        parts += [ReversePermutation(dims), made, BatchNorm(dims)]
    return NFlows(Flow(CompositeTransform(parts), StandardNormal([dims])))


FORMS = {"zuko": zuko_flow, "nflows": nflows_flow}
"""What ours is held against."""
