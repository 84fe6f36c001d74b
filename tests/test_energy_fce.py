"""Flow contrastive estimation: the value function against quadrature, its optimum, and the learned normaliser."""

import math

import pytest
import torch
from torch import nn

from models.contracts import DataSpec, Kind
from models.distributions.bases import StandardNormal
from models.energy.fce import FlowContrastive
from models.energy.nets import ConvEnergy
from models.flow.flow import Flow
from models.nn.data_init import initialize
from models.objectives.noise_contrastive import EnergyPlayer, FlowPlayer
from models.transforms.actnorm import ActNorm
from models.transforms.dequantize import UniformDequantization
from models.transforms.rescale import Rescale

LOG_2PI = math.log(2 * math.pi)


class Quadratic(nn.Module):
    """energy (u - mean)^2 / (2 scale^2): with log Z = log(scale sqrt(2 pi)) a Gaussian."""

    def __init__(self, mean, scale):
        super().__init__()
        self.mean, self.log_scale = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(math.log(scale)))

    def forward(self, u):
        return (0.5 * ((u - self.mean) / self.log_scale.exp()).square()).flatten(1).sum(1)


def ready(model):
    """Mark every data-initialised part as initialised, with the values it has."""
    for module in model.modules():
        if hasattr(module, "initialized"):
            module.initialized.fill_(True)
            module._mirror()
    return model


def line(q_scale, p_mean, p_scale, log_z=None):
    """On the real line: the flow is N(0, q_scale^2) with trainable shift and scale, the energy a Gaussian's."""
    spec = DataSpec((1, 1, 1), None)
    flow = Flow(spec, None, None, lambda shape: ([ActNorm(1)], shape), StandardNormal, False)
    model = FlowContrastive(spec, flow, Quadratic(p_mean, p_scale)).double()
    with torch.no_grad():
        flow.transforms[0].log_scale.fill_(-math.log(q_scale) / 3)
        model.ebm.log_z_per_dim.fill_(math.log(p_scale) + 0.5 * LOG_2PI if log_z is None else log_z)
    return ready(model)


def value_by_quadrature(model, data):
    """V on a fine grid, from the two densities alone."""
    v = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    log_p, log_q = model.ebm.log_prob(v.view(-1, 1, 1, 1)), model.flow.score_continuous(v.view(-1, 1, 1, 1)).nats
    both = torch.logaddexp(log_p, log_q)
    return torch.trapezoid(data.log_prob(v).exp() * (log_p - both) + log_q.exp() * (log_q - both), v)


def mean_gradient(objective, model, data, parameters, rounds=60, batch=4000):
    """(mean, standard error) of the objective's gradient over many batches."""
    found = []
    for _ in range(rounds):
        loss = objective(model, (data.sample((batch, 1, 1, 1)), None), 0)
        found.append(torch.stack(torch.autograd.grad(loss.value, parameters)).flatten())
    found = torch.stack(found)
    return found.mean(0), found.std(0) / rounds**0.5


def test_players_follow_the_gradient_of_the_value_function():
    """Both gradients, away from the optimum, against autograd through quadrature; the energy's with the opposite sign."""
    torch.manual_seed(0)
    data = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.8)
    model = line(q_scale=1.7, p_mean=-0.4, p_scale=1.2, log_z=0.9)
    energy = [model.ebm.net.mean, model.ebm.net.log_scale, model.ebm.log_z_per_dim]
    actnorm = model.flow.transforms[0]
    flow = [actnorm.bias, actnorm.log_scale]
    for objective, parameters, sign in [(EnergyPlayer(), energy, -1.0), (FlowPlayer(0), flow, 1.0)]:
        exact = torch.autograd.grad(value_by_quadrature(model, data), parameters)
        exact = sign * torch.stack([g.flatten()[0] for g in exact])
        mean, stderr = mean_gradient(objective, model, data, parameters)
        assert ((mean - exact).abs() < 5 * stderr).all()
        assert (exact.abs() > 20 * stderr).all()  # so that a wrong sign or a missing term would show


def test_value_is_stationary_where_the_energy_is_the_data():
    """No gradient for the energy at p = data, whatever the noise; none for the flow at p = q = data, where V = -2 log 2."""
    torch.manual_seed(1)
    data = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 0.8)
    model = line(q_scale=2.0, p_mean=0.3, p_scale=0.8)
    mean, stderr = mean_gradient(EnergyPlayer(), model, data, list(model.ebm.parameters()))
    assert (mean.abs() < 5 * stderr).all() and (stderr < 1e-2).all()
    same = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.5)
    model = line(q_scale=1.5, p_mean=0.0, p_scale=1.5)
    mean, stderr = mean_gradient(FlowPlayer(0), model, same, list(model.flow.parameters()))
    assert (mean.abs() < 5 * stderr).all() and (stderr < 1e-2).all()
    loss = FlowPlayer(0)(model, (same.sample((10, 1, 1, 1)), None), 0)
    assert loss.log["value_nats"].item() == pytest.approx(-2 * math.log(2.0))


def test_noise_contrast_recovers_the_normaliser():
    """A Gaussian with every parameter wrong at the start, log Z included."""
    torch.manual_seed(2)
    data = torch.distributions.Normal(torch.tensor(0.5, dtype=torch.float64), 0.6)
    model = line(q_scale=1.5, p_mean=0.0, p_scale=1.5, log_z=3.0)
    optimizer = torch.optim.Adam(model.ebm.parameters(), 0.05, betas=(0.9, 0.99))
    trace = []
    for step in range(400):
        optimizer.zero_grad()
        EnergyPlayer()(model, (data.sample((500, 1, 1, 1)), None), step).value.backward()
        optimizer.step()
        trace.append([model.ebm.log_z.item(), model.ebm.net.mean.item(), model.ebm.net.log_scale.exp().item()])
    log_z, mean, scale = torch.tensor(trace[-150:]).mean(0).tolist()
    assert scale == pytest.approx(0.6, abs=0.03) and mean == pytest.approx(0.5, abs=0.03)
    assert log_z == pytest.approx(math.log(0.6) + 0.5 * LOG_2PI, abs=0.04)


def test_energy_normalises_in_the_plane():
    """A net trained against a wide Gaussian on four blobs: exp(-energy - log Z) sums to one on a grid, and fits the blobs."""
    torch.manual_seed(3)
    spec = DataSpec((2, 1, 1), None)
    flow = Flow(spec, None, None, lambda shape: ([Rescale(0.5, 0.0)], shape), StandardNormal, False)
    model = FlowContrastive(spec, flow, ConvEnergy([2, 1, 1], 32, 1, 0.2))
    centres = torch.tensor([[1.5, 1.5], [-1.5, 1.5], [1.5, -1.5], [-1.5, -1.5]])

    def blobs(n):
        return (centres[torch.randint(4, (n,))] + 0.5 * torch.randn(n, 2)).view(n, 2, 1, 1)

    initialize(model, blobs(500))
    optimizer = torch.optim.Adam(model.ebm.parameters(), 5e-3)
    steps = 900
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 5e-3 * (1 - step / steps)
        optimizer.zero_grad()
        EnergyPlayer()(model, (blobs(250), None), step).value.backward()
        optimizer.step()
    axis = torch.linspace(-6, 6, 121)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        log_p = model.ebm.log_prob(grid.view(-1, 2, 1, 1))
    cell = 0.1**2
    truth = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.ones(4)),
        torch.distributions.Independent(torch.distributions.Normal(centres, 0.5), 1),
    ).log_prob(grid)
    assert (log_p.exp().sum() * cell).item() == pytest.approx(1.0, abs=0.08)
    assert (truth.exp() * (truth - log_p)).sum() * cell < 0.15  # KL; that of the flow itself is 1.2


def image_model(levels=17):
    torch.manual_seed(4)
    spec = DataSpec((1, 8, 8), levels)
    flow = Flow(
        spec, UniformDequantization(levels), Rescale(1.0, -0.5), lambda shape: ([ActNorm(1)], shape), StandardNormal, False
    )
    return FlowContrastive(spec, flow, ConvEnergy((1, 8, 8), 4, 2, 0.2))


def test_model_answers_as_its_flow():
    model = image_model()
    x = torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="initialising batch"):
        model(x)
    assert initialize(model, x)
    torch.manual_seed(0)
    score = model(x)
    torch.manual_seed(0)
    expected = model.flow(x)
    assert score.kind is Kind.WEIGHT and torch.equal(score.nats, expected.nats)
    assert model.sample(3).dtype is torch.uint8


def test_energy_starts_at_the_level_of_the_flow():
    """After the initialising batch the mean log ratio at data is 0 up to dequantization noise, where it was tens of nats."""
    model = image_model()
    x = torch.randint(17, (64, 1, 8, 8), dtype=torch.uint8)
    initialize(model, x)
    with torch.no_grad():
        ratio, nats = model.log_ratio(model.reals(x)[0])
    assert abs(ratio.mean()) < 0.5
    assert abs(nats.mean()) > 5


def test_each_player_reaches_only_its_own_parameters():
    model = image_model()
    x = torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8)
    initialize(model, x)
    loss = EnergyPlayer()(model, (x, None), 0)
    loss.value.backward()
    assert all(p.grad is None for p in model.flow.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.ebm.parameters())
    assert set(loss.log) == {"value_nats", "accuracy", "log_z_nats"}
    model.zero_grad()
    for parameter in model.ebm.parameters():
        parameter.requires_grad_(False)
    loss = FlowPlayer(0)(model, (x, None), 0)
    loss.value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.flow.parameters())
    assert set(loss.log) == {"value_nats", "accuracy", "nll_bpd"} and not any(v.requires_grad for v in loss.log.values())


def test_flow_begins_with_maximum_likelihood():
    model = image_model()
    x = torch.randint(17, (6, 1, 8, 8), dtype=torch.uint8)
    initialize(model, x)
    player = FlowPlayer(pretrain_steps=5)
    torch.manual_seed(0)
    early = player(model, (x, None), 4)
    torch.manual_seed(0)
    torch.testing.assert_close(early.value, -model.flow(x).nats.mean() / 64)
    assert "value_nats" in player(model, (x, None), 5).log


def test_players_need_a_flow_and_an_energy():
    with pytest.raises(ValueError, match="model=fce"):
        EnergyPlayer()(nn.Identity(), (torch.zeros(1, 1, 8, 8), None), 0)
