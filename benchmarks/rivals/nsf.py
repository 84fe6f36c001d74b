"""Spline couplings of three libraries at the size of ours: what ``benchmarks.training`` holds it against.

All have 5 couplings of rational-quadratic splines with 8 bins, whose nets have six linear maps of 512 hidden numbers, over 63
numbers and a standard normal. Ours, nflows and normflows (whose code is that of nflows) have a residual net and a learned LU
map with a permutation before each coupling; zuko has a perceptron without skips and no LU map, and its nets see and give all
numbers behind a mask. Ours has one LU map more, at the end.
"""

from __future__ import annotations

import normflows as nf
import torch
import zuko
from nflows.distributions.normal import StandardNormal
from nflows.flows.base import Flow
from nflows.nn.nets import ResidualNet
from nflows.transforms.base import CompositeTransform
from nflows.transforms.coupling import PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.lu import LULinear
from nflows.transforms.permutations import RandomPermutation
from torch import Tensor, nn

from benchmarks.rivals.libraries import NFlows, Zuko
from models.transforms.coupling import Coupling

COUPLING = "model.architecture.step.coupling"
OVERRIDES = (
    "experiment=nsf_bsds300",
    "model.architecture.num_steps=5",
    f"{COUPLING}.conditioner.width=512",
    f"{COUPLING}.conditioner.dropout=0.0",
)
"""D = 63, 5 steps, 512 hidden, batch 512."""

VARIANTS = {}
"""Further forms of ours, each by what it changes in the config."""

SPEED = (("ours", "zuko", 1.0), ("ours", "nflows", 1.0), ("ours", "normflows", 1.0), ("ours compiled", "ours", None))
"""Ratios of examples a second and what they must reach."""

SAMPLING = (("ours", "zuko", 1.0), ("ours", "nflows", 1.0), ("ours", "normflows", 1.0))
"""Ratios of samples a second and what they must reach."""

MEMORY = (("ours", "zuko", 0.9), ("ours", "nflows", 0.9), ("ours", "normflows", 0.9))
"""Ratios of peak memory and their upper bounds."""


def size_of(model) -> tuple[int, int, int, int, int]:
    """Dimensions, steps, width, blocks and bins of ours."""
    couplings = [part for part in model.transforms[-1].parts if isinstance(part, Coupling)]
    net = couplings[0].net
    return model.spec.dims, len(couplings), net.first.out_features, len(net.blocks), couplings[0].scalar_map.num_bins


def zuko_flow(model) -> Zuko:
    dims, steps, width, blocks, bins = size_of(model)
    return Zuko(zuko.flows.NSF(dims, bins=bins, transforms=steps, passes=2, hidden_features=[width] * (1 + 2 * blocks)))


def nflows_flow(model) -> NFlows:
    dims, steps, width, blocks, bins = size_of(model)
    mask, parts = torch.arange(dims) % 2, []
    for _ in range(steps):
        coupling = PiecewiseRationalQuadraticCouplingTransform(
            mask, lambda inputs, outputs: ResidualNet(inputs, outputs, width, num_blocks=blocks), bins, "linear", 3.0
        )
        parts += [RandomPermutation(dims), LULinear(dims, identity_init=True), coupling]
    return NFlows(Flow(CompositeTransform(parts), StandardNormal([dims])))


class NormFlows(nn.Module):
    def __init__(self, model):
        super().__init__()
        dims, steps, width, blocks, bins = size_of(model)
        parts = []
        for _ in range(steps):
            parts += [nf.flows.CoupledRationalQuadraticSpline(dims, blocks, width, num_bins=bins), nf.flows.LULinearPermute(dims)]
        self.flow = nf.NormalizingFlow(nf.distributions.DiagGaussian((dims,), trainable=False), parts)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        return self.flow.log_prob(x.flatten(1))

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)[0]


FORMS = {"zuko": zuko_flow, "nflows": nflows_flow, "normflows": NormFlows}
"""What ours is held against."""
