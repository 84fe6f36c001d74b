"""Continuous flows: closed forms, autograd and enumeration against the solver, its gradients and its estimates."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from scipy.linalg import expm
from torch import nn

from models.contracts import DataSpec, Kind
from models.distributions.bases import StandardNormal
from models.evaluators.solver import SolverError
from models.flow.ffjord import ContinuousScales
from models.flow.flat import Flat
from models.flow.flow import Flow
from models.nn.concat_squash import ConcatConv, ConcatSquashMLP
from models.objectives.continuous import ContinuousLikelihood
from models.objectives.importance_weighted import require_weights
from models.transforms.continuous import ContinuousFlow, count_evaluations
from models.transforms.dequantize import UniformDequantization
from models.transforms.divergence import Exact, Gaussian, Rademacher
from models.transforms.sequence import Sequential
from models.transforms.solvers import Adaptive, FixedSteps
from models.transforms.split import Split, UnitNormal
from tests.checks_bijection import check_bijection
from tests.test_evaluators import SPEC, context

TIGHT = Adaptive("dopri5", 1e-9, 1e-9, adjoint=False)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Linear(nn.Module):
    """v = A x at all times."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x, t):
        return x @ self.matrix.T


def mlp(hidden=(8,)):
    return partial(ConcatSquashMLP, hidden=hidden, activation=nn.Softplus)


def vector_flow(dim=3, solver=TIGHT, divergence=None, exact_up_to=64, net=None):
    flow = ContinuousFlow(dim, net or mlp(), divergence or Rademacher(), exact_up_to, solver, time=0.7)
    return flow.double().eval()


def test_linear_dynamics_have_a_closed_form():
    matrix = torch.randn(4, 4, dtype=torch.float64)
    flow, x = vector_flow(4, net=lambda dim: Linear(matrix)), torch.randn(5, 4, dtype=torch.float64)
    z, log_det = flow(x)
    time = flow.root_time.item() ** 2
    torch.testing.assert_close(z, x @ torch.tensor(expm(time * matrix.numpy())).T, rtol=0, atol=1e-7)
    torch.testing.assert_close(log_det, (time * matrix.trace()).expand(5), rtol=0, atol=1e-7)
    back, back_log_det = flow.inverse_and_log_det(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-7)
    torch.testing.assert_close(back_log_det, -log_det, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    "net, shape",
    [(mlp()(5), (5,)), (ConcatConv(2, [4], nn.Tanh), (2, 3, 3))],
)
def test_exact_trace_against_the_brute_force_jacobian(net, shape):
    net, t = net.double(), torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(3, *shape, dtype=torch.float64, requires_grad=True)
    trace = Exact()(net(x, t), x, None, False)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: net(v.view(1, *shape), t).flatten(), x[i].detach().flatten())
        torch.testing.assert_close(trace[i], jacobian.trace(), rtol=0, atol=1e-12)


def test_all_sign_vectors_average_to_the_trace():
    net, t = mlp()(4).double(), torch.tensor(0.4, dtype=torch.float64)
    x = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    velocity = net(x, t)
    signs = torch.tensor(list(product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
    estimates = torch.stack([Rademacher()(velocity, x, e[None], False) for e in signs])
    assert estimates.std() > 1e-3
    torch.testing.assert_close(estimates.mean(), Exact()(velocity, x, None, False)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("noise", [Rademacher(), Gaussian()])
def test_noise_has_unit_covariance(noise):
    draws = noise.draw(torch.zeros(200_000, 3, dtype=torch.float64))
    torch.testing.assert_close(draws.T @ draws / len(draws), torch.eye(3, dtype=torch.float64), rtol=0, atol=0.02)
    assert draws.mean(0).abs().max() < 0.02


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("divergence", [Rademacher(), Gaussian()])
def test_estimated_log_det_is_unbiased(divergence, backwards):
    """NOISY: E[nats] = log p, in either direction."""
    flow = vector_flow(3, FixedSteps("rk4", 4, adjoint=False), divergence)
    x = torch.randn(1, 3, dtype=torch.float64)
    solve = flow.inverse_and_log_det if backwards else flow.forward
    with torch.no_grad():
        exact = solve(x)[1]
        flow.train()
        estimates = solve(x.expand(4000, 3))[1]
    error = estimates.std() / len(estimates) ** 0.5
    assert 0 < error
    assert (estimates.mean() - exact).abs() < 5 * error


def test_one_noise_a_solve(monkeypatch):
    draws = []
    monkeypatch.setattr(Rademacher, "draw", lambda self, x: draws.append(x) or torch.ones_like(x))
    flow = vector_flow(3).train()
    flow(torch.randn(2, 3, dtype=torch.float64))
    assert len(draws) == 1 and flow.evaluations > 6


def flat_flow(spec, **kwargs):
    return Flow(
        spec, None if spec.levels is None else UniformDequantization(spec.levels), None,
        Flat(2, {"flow": lambda dim: vector_flow(dim, **kwargs)}, {}), StandardNormal, False,
    ).double().eval()  # fmt: skip


def test_kinds():
    """Training is noisy, evaluation exact up to the stated number of dimensions; also inside a Sequential."""
    spec = DataSpec((1, 2, 2), 3)
    x = torch.randint(0, 3, (2, 1, 2, 2), dtype=torch.uint8)
    small, large = flat_flow(spec, exact_up_to=4), flat_flow(spec, exact_up_to=3)
    assert small.score(x).kind == Kind.WEIGHT and large.score(x).kind == Kind.WEIGHT | Kind.NOISY
    score = small.train().score(x)
    assert score.kind == Kind.WEIGHT | Kind.NOISY and score.kind.statement == "bound"
    with pytest.raises(ValueError):
        require_weights(score)
    assert vector_flow(divergence=Exact()).train().kind == Kind.EXACT
    assert Sequential([vector_flow().train()]).kind == Kind.NOISY and Sequential([vector_flow()]).kind == Kind.EXACT


def test_density_of_the_plane_integrates_to_one():
    flow = flat_flow(DataSpec((2, 1, 1), None), solver=FixedSteps("rk4", 8, adjoint=False))
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).view(-1, 2, 1, 1)
    with torch.no_grad():
        score = flow.score(grid)
    assert score.kind == Kind.EXACT
    total = score.nats.exp().sum() * (axis[1] - axis[0]) ** 2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_adjoint_gradients_against_those_through_the_solver(train):
    gradients = []
    for adjoint in (False, True):
        torch.manual_seed(1)
        flow = vector_flow(3, Adaptive("dopri5", 1e-9, 1e-9, adjoint)).train(train)
        x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        z, log_det = flow(x)
        (z.square().sum() / 2 - log_det.sum()).backward()
        gradients.append([x.grad, *(p.grad for p in flow.parameters())])
    assert all(g.abs().max() > 0 for g in gradients[0])
    for through, adjoint in zip(*gradients):
        torch.testing.assert_close(adjoint, through, rtol=1e-5, atol=1e-6)


def test_rk4_is_of_fourth_order():
    x, exact = torch.randn(4, 3, dtype=torch.float64), vector_flow(3, Adaptive("dopri8", 1e-12, 1e-12, False))
    errors = []
    for steps in (2, 4):
        torch.manual_seed(0)
        flow = vector_flow(3, FixedSteps("rk4", steps, adjoint=False))
        flow.load_state_dict(exact.state_dict())
        with torch.no_grad():
            errors.append(float((flow(x)[0] - exact(x)[0]).abs().max()))
            assert flow.evaluations == 4 * steps
    assert 11 < errors[0] / errors[1] < 23


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_round_trip_within_the_tolerance(tolerance):
    flow = ContinuousFlow(6, mlp((16,)), Rademacher(), 64, Adaptive("dopri5", tolerance, tolerance, adjoint=False), 2.0).eval()
    x = torch.randn(64, 6)
    with torch.no_grad():
        error = (flow.inverse(flow(x)[0]) - x).abs().max()
    assert error < 20 * tolerance


def test_scales_of_images():
    flow = partial(
        ContinuousFlow, net=partial(ConcatConv, hidden=[3], activation=nn.Softplus), divergence=Rademacher(), exact_up_to=16,
        solver=TIGHT, time=1.0,
    )  # fmt: skip
    scales = ContinuousScales(2, 1, flow, partial(Split, prior=UnitNormal))
    transforms, left = scales((1, 4, 4))
    assert left == (2, 2, 2) and len(transforms) == 3
    check_bijection(transforms[2].eval(), torch.randn(1, 2, 2, 2, dtype=torch.float64))
    model = Flow(DataSpec((1, 4, 4), 3), UniformDequantization(3), None, scales, StandardNormal, False).double().eval()
    x = torch.randint(0, 3, (3, 1, 4, 4), dtype=torch.uint8)
    latents = model.encode(x)
    assert [z.shape[1:] for z in latents] == [(2, 2, 2), (2, 2, 2)] and torch.equal(model.decode(latents), x)
    log_dets = [value for name, value in model.score(x).terms.items() if name.startswith("logdet")]
    assert len(log_dets) == 2 and all(value.abs().min() > 0 for value in log_dets)
    with pytest.raises(ValueError, match="num_scales=2 halves the sides 1 times"):
        scales((1, 3, 4))


def test_evaluations_are_logged():
    model = flat_flow(DataSpec((1, 2, 2), 3))
    x = torch.randint(0, 3, (8, 1, 2, 2), dtype=torch.uint8)
    loss = ContinuousLikelihood()(model.train(), (x, None), 0)
    assert loss.log["evaluations"] == count_evaluations(model) > 12
    assert {"nll_bpd", "evaluations"} <= set(loss.log)


def test_solver_evaluator(tmp_path):
    errors = {}
    for steps in (1, 8):
        torch.manual_seed(0)
        model = flat_flow(SPEC, solver=FixedSteps("rk4", steps, adjoint=False)).float()
        records = {r["metric"]: r for r in SolverError(5, 4)(context(tmp_path, model))}
        assert records["solver_evaluations"]["value"] == 2 * 4 * steps and records["solver_evaluations"]["count"] == 3
        errors[steps] = records["solver_abs_error_nats"]["value"]
        assert abs(records["solver_error_nats"]["value"]) <= errors[steps] and records["solver_error_nats"]["count"] == 5
    assert 0 < errors[8] < errors[1] / 100
    with pytest.raises(ValueError, match="no continuous flow"):
        SolverError(5, 4)(context(tmp_path))


def test_mistakes():
    with pytest.raises(ValueError, match="method must be one of dopri5"):
        Adaptive("rk4", 1e-5, 1e-5, False)
    with pytest.raises(ValueError, match="method must be one of euler"):
        FixedSteps("dopri5", 4, False)
    with pytest.raises(ValueError, match="rtol and atol must be positive"):
        Adaptive("dopri5", 0.0, 1e-5, False)
    with pytest.raises(ValueError, match="num_steps"):
        FixedSteps("rk4", 0, False)
    with pytest.raises(ValueError, match="time must be positive"):
        ContinuousFlow(2, mlp(), Exact(), 64, TIGHT, 0.0)
    with pytest.raises(FloatingPointError, match="lower optimizer.lr"):
        vector_flow(2)(torch.full((1, 2), torch.nan, dtype=torch.float64))
