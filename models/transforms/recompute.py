"""Gradients of a chain of bijections without its activations: the inverse gives them back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.contracts import Bijection


class Recomputed(torch.autograd.Function):
    """(z, sum of contributions) of ``steps`` one after another; only z is kept, whatever the number of steps.

    Gomez et al. 2017 (arXiv:1707.04585), sec. 3.2. The backward pass walks the steps from the last: it inverts one, runs it
    again with a graph and takes its gradients. ``parameters`` are those of all steps. What an inverse loses to rounding, the
    gradients see. They cannot be differentiated again.
    """

    @staticmethod
    def forward(ctx, steps: Sequence[Bijection], context: Tensor | None, x: Tensor, *parameters: Tensor):
        contributions = []
        for step in steps:
            x, contribution = step(x, context)
            contributions.append(contribution)
        ctx.steps, ctx.parameters, ctx.autocast = steps, parameters, _autocast(x)
        ctx.save_for_backward(x, context)
        return x.view_as(x), torch.stack(contributions).sum(0)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_z: Tensor, grad_log_det: Tensor):
        z, context = ctx.saved_tensors
        gradients: dict[Tensor, Tensor] = {}
        if context is not None and ctx.needs_input_grad[1]:
            context = context.detach().requires_grad_()
        for step in reversed(ctx.steps):
            with torch.enable_grad(), torch.autocast(**ctx.autocast):
                x, z, contribution = step.retrace(z, context)
            wanted = [t for t in (x, context, *step.parameters()) if t is not None and t.requires_grad]
            outputs, grads = [z], [grad_z]
            if contribution.requires_grad:
                outputs, grads = [z, contribution], [grad_z, grad_log_det]
            found = torch.autograd.grad(outputs, wanted, grads, allow_unused=True)
            grad_z = found[0]
            for tensor, gradient in zip(wanted[1:], found[1:], strict=True):
                if gradient is not None:
                    gradients[tensor] = gradients[tensor] + gradient if tensor in gradients else gradient
            z = x.detach()
        return None, gradients.get(context), grad_z, *(gradients.get(p) for p in ctx.parameters)


def _autocast(x: Tensor) -> dict:
    kind = x.device.type
    return {"device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)}
