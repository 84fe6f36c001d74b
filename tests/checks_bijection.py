"""The law every bijection obeys, as one function."""

from contextlib import contextmanager

import torch
from torch import Tensor, nn

from models.contracts import Bijection
from models.transforms.continuous import continuous_flows
from models.transforms.integer import IntegerShift
from models.transforms.solvers import Adaptive


def randomize(module: nn.Module, scale: float = 0.1) -> None:
    """Move every parameter by Gaussian noise, so that no check passes only because a net starts at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def log_abs_det_jacobian(function, x: Tensor, vectorize: bool = False) -> tuple[Tensor, Tensor]:
    """(J, log |det J|) of one example ``x`` [1, *event] by autograd, of all outputs at once if ``vectorize``."""
    flat = x.flatten()
    jacobian = torch.autograd.functional.jacobian(lambda v: function(v.view_as(x)).flatten(), flat, vectorize=vectorize)
    return jacobian, torch.linalg.slogdet(jacobian).logabsdet


def check_bijection(transform: Bijection, x: Tensor, context: Tensor | None = None) -> None:
    """inverse(forward(x)) = x, both log-dets against autograd, and exact gradients through ``inverse``.

    ``x`` [B, *event] is float64, ``context`` [B, ...] or None. The transform is used as it is: initialise and
    ``randomize`` it first.
    """
    with tight_solvers(transform):
        _check_bijection(transform, x, context)


def _check_bijection(transform: Bijection, x: Tensor, context: Tensor | None) -> None:
    transform = transform.double()
    z, contribution = transform(x, context)
    back, log_det = transform.inverse_and_log_det(z, context)
    assert z[0].numel() == x[0].numel() and contribution.shape == log_det.shape == (x.shape[0],)
    assert z.shape != x.shape or not torch.allclose(z, x), "a transform left at the identity checks nothing"
    torch.testing.assert_close(back, x, rtol=0, atol=1e-10)
    torch.testing.assert_close(transform.inverse(z, context), x, rtol=0, atol=1e-10)
    long = bool(continuous_flows(transform))  # so is the graph of a solve: it is walked once, not once for each output
    for i in range(x.shape[0]):
        one = slice(i, i + 1)
        c = None if context is None else context[one]
        forward, forward_det = log_abs_det_jacobian(lambda v: transform(v, c)[0], x[one], long)
        inverse, inverse_det = log_abs_det_jacobian(lambda v: transform.inverse(v, c), z[one].detach(), long)
        torch.testing.assert_close(contribution[i], forward_det, rtol=0, atol=1e-8)
        torch.testing.assert_close(log_det[i], inverse_det, rtol=0, atol=1e-8)
        torch.testing.assert_close(inverse @ forward, torch.eye(len(forward), dtype=x.dtype), rtol=0, atol=1e-8)
    with fine_grids(transform):
        check_parameter_gradients(transform, z.detach(), context)


@contextmanager
def tight_solvers(transform: Bijection):
    """Continuous flows solve to float64's precision, so that what is left of an error is not the solver's."""
    solvers = [(flow, flow.solver) for flow in continuous_flows(transform)]
    for flow, _ in solvers:
        flow.solver = Adaptive("dopri8", 1e-12, 1e-12, adjoint=False)
    yield
    for flow, solver in solvers:
        flow.solver = solver


@contextmanager
def fine_grids(transform: Bijection):
    """Integer maps round to so fine a grid that no difference sees it: what their straight-through gradients are those of."""
    maps = [(m, m.step) for m in transform.modules() if isinstance(m, IntegerShift)]
    for one, _ in maps:
        one.step = 2.0**-45
    yield
    for one, step in maps:
        one.step = step


def check_parameter_gradients(transform: Bijection, z: Tensor, context: Tensor | None = None) -> None:
    """The gradient of ``inverse`` in every parameter against a central difference along one random direction."""
    parameters = list(transform.parameters())
    if not parameters:
        return
    direction = [torch.randn_like(p) for p in parameters]
    weight = torch.randn_like(transform.inverse(z, context))

    def value(step: float) -> Tensor:
        with torch.no_grad():
            for p, d in zip(parameters, direction):
                p.add_(step * d)
            x, log_det = transform.inverse_and_log_det(z, context)
            for p, d in zip(parameters, direction):
                p.sub_(step * d)
        return (x * weight).sum() + log_det.sum()

    x, log_det = transform.inverse_and_log_det(z, context)
    gradients = torch.autograd.grad((x * weight).sum() + log_det.sum(), parameters)
    analytic = sum((g * d).sum() for g, d in zip(gradients, direction))
    numeric = (value(1e-7) - value(-1e-7)) / 2e-7  # so short that hardly a ReLU turns on the way
    torch.testing.assert_close(analytic, numeric, rtol=1e-5, atol=1e-5)
