"""The divergence of a vector field: exact, or an unbiased estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from models.contracts import Kind, sum_event


class Divergence:
    """tr(dv/dx) of velocities v(x) [B, *event]. A solve begins with ``draw(x)``, whose noise serves it to its end."""

    kind: Kind

    def draw(self, x: Tensor) -> Tensor | None:
        """The noise of one solve, shaped as ``x``, or None."""
        raise NotImplementedError

    def __call__(self, velocity: Tensor, x: Tensor, noise: Tensor | None, differentiable: bool) -> Tensor:
        """The divergence [B] at ``x``, which ``velocity`` was computed from; with a graph of its own if ``differentiable``."""
        raise NotImplementedError


class Exact(Divergence):
    """sum_i dv_i/dx_i by D vector-Jacobian products at once (the paper's brute force)."""

    kind = Kind.EXACT

    def draw(self, x: Tensor) -> None:
        return None

    def __call__(self, velocity: Tensor, x: Tensor, noise: Tensor | None, differentiable: bool) -> Tensor:
        dims = x[0].numel()
        eye = torch.eye(dims, dtype=x.dtype, device=x.device).view(dims, 1, *x.shape[1:])
        (rows,) = torch.autograd.grad(
            velocity, x, eye.expand(dims, *x.shape), create_graph=differentiable, retain_graph=True, is_grads_batched=True
        )
        return torch.einsum("dbd->b", rows.flatten(2))


class Hutchinson(Divergence):
    """e^T (dv/dx) e with E[e e^T] = I: one vector-Jacobian product, E over e the divergence.

    Hutchinson 1990; Grathwohl et al. 2019 (arXiv:1810.01367), eqs. 7 and 8, where one e serves a whole solve, so that the
    integrand stays a deterministic function of time.
    """

    kind = Kind.NOISY

    def __call__(self, velocity: Tensor, x: Tensor, noise: Tensor | None, differentiable: bool) -> Tensor:
        (product,) = torch.autograd.grad(velocity, x, noise, create_graph=differentiable, retain_graph=True)
        return sum_event(product * noise)


class Gaussian(Hutchinson):
    """Hutchinson's estimate with standard normal noise."""

    def draw(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


class Rademacher(Hutchinson):
    """Hutchinson's estimate with random signs, which leave out the variance of the diagonal."""

    def draw(self, x: Tensor) -> Tensor:
        return torch.randint_like(x, 2) * 2 - 1
