"""Monotone rational-quadratic splines."""

from __future__ import annotations

from math import expm1, log

import torch
import torch.nn.functional as F
from torch import Tensor

from models.distributions.normal import full_precision
from models.transforms.maps import ScalarMap


class RationalQuadratic(ScalarMap):
    """A spline of ``num_bins`` bins on [-B, B], B = ``bound``, the identity outside. With t = (x - x_k) / w_k in bin k,

        z = y_k + h_k (s t^2 + d_k t (1 - t)) / (s + (d_k + d_k+1 - 2 s) t (1 - t)),   s = h_k / w_k

    (Durkan et al. 2019, arXiv:1906.04032, eqs. 4 to 8; Gregory & Delbourgo 1982). The parameters of a number are K for the
    widths w and K for the heights h (each a softmax, of at least ``min_width`` and ``min_height`` of the interval) and K - 1
    for the derivatives d at the inner knots (a softplus, at least ``min_derivative``; 1 at the ends). Deviations from the
    released code: where all parameters are 0 the inner derivatives are 1, so that a spline starts as the identity; widths
    and heights are not divided by the root of the net's width.
    """

    def __init__(self, num_bins: int, bound: float, min_width: float, min_height: float, min_derivative: float):
        super().__init__()
        if bound <= 0 or num_bins < 2:
            raise ValueError(f"a spline needs a positive bound and at least 2 bins; got bound={bound}, num_bins={num_bins}")
        if not (0 <= min_width < 1 / num_bins and 0 <= min_height < 1 / num_bins and 0 < min_derivative < 1):
            raise ValueError(
                f"{num_bins} bins need min_width and min_height below 1/{num_bins} and min_derivative between 0 and 1; "
                f"got {min_width}, {min_height}, {min_derivative}"
            )
        self.num_bins, self.bound, self.num_params = num_bins, bound, 3 * num_bins - 1
        self.min_width, self.min_height, self.min_derivative = min_width, min_height, min_derivative

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        widths, heights, slopes = self._shape(params)
        inside = x.abs() < self.bound
        inner = torch.where(inside, x, 0.0)
        left, width, bottom, height, d0, d1 = self._bin(inner, widths, heights, slopes)
        t = (inner - left) / width
        s, u = height / width, t * (1 - t)
        z = bottom + height * (s * t * t + d0 * u) / (s + (d0 + d1 - 2 * s) * u)
        return torch.where(inside, z, x), torch.where(inside, self._log_slope(t, s, d0, d1), 0.0)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The root t of a quadratic (eqs. 6 to 8, appendix A.3), in the form that does not cancel."""
        widths, heights, slopes = self._shape(params)
        inside = z.abs() < self.bound
        y = torch.where(inside, z, 0.0)
        bottom, height, left, width, d0, d1 = self._bin(y, heights, widths, slopes)
        s, rise = height / width, y - bottom
        curved = rise * (d0 + d1 - 2 * s)
        a, b, c = height * (s - d0) + curved, height * d0 - curved, -s * rise
        t = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(torch.finfo(y.dtype).tiny).sqrt())
        return torch.where(inside, left + t * width, z), torch.where(inside, -self._log_slope(t, s, d0, d1), 0.0)

    def _shape(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Widths and heights [B, K, C, ...], and of all knots what ``_derivative`` maps to the derivatives, [B, K + 1, C, ...]."""
        params = full_precision(params).unflatten(1, (self.num_params, -1))
        widths, heights, slopes = params.split([self.num_bins, self.num_bins, self.num_bins - 1], 1)
        shares = lambda free, least: least + (1 - self.num_bins * least) * torch.softmax(free, 1)  # noqa: E731
        end, span = torch.zeros_like(params[:, :1]), 2 * self.bound
        return span * shares(widths, self.min_width), span * shares(heights, self.min_height), torch.cat([end, slopes, end], 1)

    def _derivative(self, slope: Tensor) -> Tensor:
        """At least ``min_derivative``, and 1 where ``slope`` is 0."""
        return self.min_derivative + F.softplus(slope + log(expm1(1 - self.min_derivative)))

    def _bin(self, x: Tensor, along: Tensor, across: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
        """Of each number's bin on the axis ``along``: start and size on that axis and on the other, both derivatives."""
        zero = torch.zeros_like(along[:, :1])
        first, second = (torch.cat([zero, sizes[:, :-1].cumsum(1)], 1) - self.bound for sizes in (along, across))
        k = (x.unsqueeze(1) >= first[:, 1:]).sum(1, keepdim=True)
        pick = lambda table: _Pick.apply(table, k).squeeze(1)  # noqa: E731
        derivatives = (self._derivative(pick(ends)) for ends in (slopes[:, :-1], slopes[:, 1:]))
        return pick(first), pick(along), pick(second), pick(across), *derivatives

    @staticmethod
    def _log_slope(t: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        """log dz/dx (eq. 5)."""
        u = t * (1 - t)
        steep = d1 * t * t + 2 * s * u + d0 * (1 - t) * (1 - t)
        return 2 * s.log() + steep.log() - 2 * (s + (d0 + d1 - 2 * s) * u).log()


class _Pick(torch.autograd.Function):
    """``table.gather(1, index)``, which keeps the index for its gradient and not the table."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table, index):
        return table.gather(1, index)

    @staticmethod
    def setup_context(ctx, inputs, output):
        table, index = inputs
        ctx.shape = table.shape
        ctx.save_for_backward(index)

    @staticmethod
    def backward(ctx, gradient):
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.shape).scatter_add_(1, index, gradient), None
