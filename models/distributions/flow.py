"""A distribution transported by bijections: flow priors, flow posteriors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.contracts import Bijection, Conditional, Distribution


class FlowDistribution(Distribution):
    """log p(x) = log p_base(z) + sum_i contribution_i, with z = (T_k o ... o T_1)(x).

    ``transforms`` are in the order data -> base. ``log_prob`` runs them forwards; ``rsample_and_log_prob`` draws from
    the base and runs them backwards, log p(x) = log p_base(z) - sum_i log |det dx_i/dz_i|, so a flow whose inverse is the
    cheap direction (an IAF posterior) gets draw and density in one pass.
    """

    def __init__(self, base: Distribution, transforms: Sequence[Bijection], context: Tensor | None = None):
        self.base, self.transforms, self.context = base, transforms, context

    def log_prob(self, z: Tensor) -> Tensor:
        total = 0.0
        for transform in self.transforms:
            z, contribution = transform(z, self.context)
            total = total + contribution
        return self.base.log_prob(z) + total

    def rsample(self, n: int, temperature: float = 1.0) -> Tensor:
        """Draws [n, *event]; ``temperature`` is the base's."""
        z = self.base.rsample(n, temperature)
        for transform in reversed(self.transforms):
            z = transform.inverse(z, self.context)
        return z

    def rsample_and_log_prob(self, n: int) -> tuple[Tensor, Tensor]:
        z, log_prob = self.base.rsample_and_log_prob(n)
        for transform in reversed(self.transforms):
            z, log_det = transform.inverse_and_log_det(z, self.context)
            log_prob = log_prob - log_det
        return z, log_prob


class FlowConditional(Conditional):
    """A base and its bijections (in the order data -> base) as one Conditional: a flow prior.

    The context, if any, reaches both the base and every bijection.
    """

    def __init__(self, base: Conditional, transforms: list[Bijection]):
        super().__init__()
        self.base, self.transforms = base, nn.ModuleList(transforms)

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        return FlowDistribution(self.base(context), list(self.transforms), context)
