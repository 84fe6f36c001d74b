"""Gradients of a chain of bijections without its activations: the inverse gives them back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.contracts import Bijection
from models.transforms.folding import Folded, Folding


def run(parts: Sequence[Bijection], folded: Sequence[tuple[Folded, ...]], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """(z, sum of contributions [B]) of ``parts`` one after another, each with what it takes of ``folded``."""
    contributions = []
    for part, last in zip(parts, folded, strict=True):
        x, contribution = part(x, context, *last)
        contributions.append(contribution)
    return x, torch.stack(contributions).sum(0)


def recomputed(folding: Folding, folded: Sequence[tuple[Folded, ...]], x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    """As ``run``, but of all that is made on the way only z is kept, whatever the number of parts.

    Gomez et al. 2017 (arXiv:1707.04585), sec. 3.2. The backward pass walks the parts from the last: it inverts one, runs it
    again with a graph and takes its gradients. What an inverse loses to rounding, they see. They cannot be differentiated again.
    """
    tensors = [last[0] if last else tuple(part.parameters()) for part, last in zip(folding.parts, folded, strict=True)]
    sizes = [len(own) for own in tensors]
    return _Recomputed.apply(folding, [bool(last) for last in folded], sizes, x, context, *(t for own in tensors for t in own))


class _Recomputed(torch.autograd.Function):
    """Gradients go to x, the context and ``tensors``: of each part what was folded or else its parameters, ``sizes`` of them."""

    @staticmethod
    def forward(ctx, folding: Folding, is_folded, sizes, x: Tensor, context: Tensor | None, *tensors: Tensor):
        z, log_det = run(folding.parts, _folded(is_folded, _grouped(sizes, tensors)), x, context)
        ctx.folding, ctx.is_folded, ctx.sizes, ctx.autocast = folding, is_folded, sizes, _autocast(x)
        ctx.save_for_backward(z, context, *tensors)
        return z.view_as(z), log_det

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z: Tensor, grad_log_det: Tensor):
        z, context, *tensors = ctx.saved_tensors
        if context is not None and ctx.needs_input_grad[4]:
            context = context.detach().requires_grad_()
        tensors = _grouped(ctx.sizes, [t if t.is_leaf else t.detach().requires_grad_() for t in tensors])
        folded = _folded(ctx.is_folded, tensors)
        inverse = ctx.folding.invert(folded)
        grad_context, grads_tensors = None, []
        for part, own, last in zip(reversed(ctx.folding.parts), reversed(tensors), reversed(list(zip(folded, inverse))), strict=True):
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                x, z, contribution = part.retrace(z, context, *last[0], *last[1])
            inputs = (x, context, *own)
            wanted = [t for t in inputs if t is not None and t.requires_grad]
            outputs, grads = [z], [grad_z]
            if contribution.requires_grad:
                outputs, grads = [z, contribution], [grad_z, grad_log_det]
            found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
            grad_z, more, *grads = (next(found) if t is not None and t.requires_grad else None for t in inputs)
            if more is not None:
                grad_context = more if grad_context is None else grad_context + more
            grads_tensors = grads + grads_tensors
            z = x.detach()
        return None, None, None, grad_z, grad_context, *grads_tensors


def _grouped(sizes: Sequence[int], tensors: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    rest = iter(tensors)
    return [tuple(islice(rest, size)) for size in sizes]


def _folded(is_folded: Sequence[bool], tensors: Sequence[tuple[Tensor, ...]]) -> list[tuple[Folded, ...]]:
    return [(own,) if yes else () for yes, own in zip(is_folded, tensors, strict=True)]


def _autocast(x: Tensor) -> dict:
    kind = x.device.type
    return {"device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}
