"""Masked autoregressive flows against zuko, by number and by pass; mixtures, the radial flow, densities over the plane."""

from functools import partial
from math import log

import pytest
import torch
import zuko
from checks_bijection import check_bijection, check_parameter_gradients, log_abs_det_jacobian, randomize
from torch import distributions as reference
from torch import nn

from models.contracts import Kind
from models.distributions.autoregressive import AutoregressiveMixture
from models.latent.posteriors import FlowPosterior
from models.nn.masked import MADE, Walk
from models.transforms.affine_maps import Affine
from models.transforms.autoregressive import MaskedAutoregressive
from models.transforms.radial import Radial
from models.transforms.splines import RationalQuadratic
from tests.conftest import build_model, compose, shaped
from tests.laws import ready

BOUND = 3.0


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def step(dim, hidden=(24, 18), scalar_map=partial(Affine, bound=BOUND)):
    transform = MaskedAutoregressive(dim, 0, hidden, nn.ReLU, scalar_map).double()
    randomize(transform, 0.3)
    return transform


def zukos_affine(m, a):
    """zuko's affine map, shift and bounded log scale, as (x - m) exp(-b tanh(a / b))."""
    log_scale = -BOUND * torch.tanh(a / BOUND)
    unbounded = log_scale / (1 - (log_scale / log(1e-9)).abs())
    return zuko.transforms.MonotonicAffineTransform(-m * log_scale.exp(), unbounded, slope=1e-9)


def zukos(ours, dim):
    """zuko's masked autoregressive transform with our weights: the degrees agree, outputs come number by number."""
    theirs = zuko.flows.MaskedAutoregressiveTransform(dim, univariate=zukos_affine, hidden_features=(24, 18)).double()
    by_number = torch.arange(2 * dim).view(2, dim).T.flatten()
    layers = [layer for layer in theirs.hyper if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, source in zip(layers, [*ours.net.hidden, ours.net.last], strict=True):
            order = by_number if source is ours.net.last else slice(None)
            assert layer.mask.equal(source.mask[order].bool())
            layer.weight.copy_(source.weight[order])
            layer.bias.copy_(source.bias[order])
    return theirs


def test_step_is_zukos_with_the_same_weights():
    ours = step(7)
    theirs = zukos(ours, 7)()
    x = torch.randn(9, 7, dtype=torch.float64)
    z, log_det = ours(x)
    wanted, wanted_det = theirs.call_and_ladj(x)
    torch.testing.assert_close(z, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_det, wanted_det, rtol=0, atol=1e-10)
    torch.testing.assert_close(ours.inverse(z), theirs.inv(z), rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 0, 4, 2, 1], [0]])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_walk_gives_the_outputs_of_the_full_pass(order, context_dim):
    net = MADE(order, [7, 4, 9], 3, context_dim, nn.Tanh).double()
    randomize(net, 0.5)
    x, context = torch.randn(6, len(order), dtype=torch.float64), torch.randn(6, context_dim, dtype=torch.float64)
    wanted = net(x, context if context_dim else None)
    walk, value = Walk(net, 6, context if context_dim else None), None
    for place, number in enumerate(torch.tensor(order).argsort().tolist()):
        torch.testing.assert_close(walk.step(place, value), wanted[:, :, number], rtol=0, atol=1e-12)
        value = x[:, number : number + 1]


def by_passes(transform, z):
    """The inverse by D full passes, each of which settles one more number."""
    x = torch.zeros_like(z)
    for place in range(z.shape[1]):
        candidate, log_slope = transform.scalar_map.inverse(z, transform.net(x).flatten(1))
        x = torch.where(transform.net.input_places == place, candidate, x)
    return x, log_slope.sum(1)


@pytest.mark.parametrize("scalar_map", [partial(Affine, bound=BOUND), partial(RationalQuadratic, 4, 2.0, 1e-3, 1e-3, 1e-3)])
def test_inverse_and_its_gradients_are_those_of_full_passes(scalar_map):
    transform = step(6, scalar_map=scalar_map)
    z = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 6, dtype=torch.float64)
    sources, gradients = [z, *transform.parameters()], []
    for x, log_det in (transform.inverse_and_log_det(z), by_passes(transform, z)):
        gradients.append([x, log_det, *torch.autograd.grad((weight * x).sum() + log_det.sum(), sources)])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(transform.inverse(z), gradients[0][0], rtol=0, atol=0)
    check_parameter_gradients(transform, z.detach())


def test_every_hidden_unit_is_computed_once(monkeypatch):
    """The products of all steps together are no more than those of one pass."""
    net, spent = MADE(range(16), [64, 64], 2, 0, nn.ReLU), []
    product = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda b, w, h: (spent.append(w.shape[0] * w.shape[1]), product(b, w, h))[1])
    walk = Walk(net, 3)
    for place in range(16):
        walk.step(place, torch.randn(3, 1) if place else None)
    assert sum(spent) < 0.7 * sum(layer.weight.numel() for layer in [*net.hidden, net.last])


# --- mixtures of Gaussians ------------------------------------------------------------------------------------------------


def mixture(dim=3, components=4):
    base = AutoregressiveMixture([dim], components, [12], nn.Tanh, 5.0).double()
    randomize(base, 0.3)
    return base()


def test_mixture_is_torchs_given_the_numbers_before():
    chain, z = mixture(), torch.randn(8, 3, dtype=torch.float64)
    logits, mean, log_scale = chain.net(z).transpose(1, 2).chunk(3, -1)
    parts = reference.Normal(mean, (5 * torch.tanh(log_scale / 5)).exp())
    wanted = reference.MixtureSameFamily(reference.Categorical(logits=logits), parts)
    torch.testing.assert_close(chain.log_prob(z), wanted.log_prob(z).sum(1))
    torch.testing.assert_close(chain.standardize(z), reference.Normal(0, 1).icdf(wanted.cdf(z)), rtol=0, atol=1e-7)
    jacobian, log_det = log_abs_det_jacobian(chain.standardize, z[:1])
    normal = reference.Normal(0, 1).log_prob(chain.standardize(z[:1])).sum(1)
    torch.testing.assert_close(normal + log_det, chain.log_prob(z[:1]), rtol=0, atol=1e-7)


def test_mixture_places_its_own_residuals_also_in_the_tails():
    chain = mixture()
    z = torch.cat([torch.randn(50, 3, dtype=torch.float64), torch.tensor([[30.0, -30.0, 20.0]]).double()])
    residual = chain.standardize(z)
    assert residual.isfinite().all() and residual[-1].abs().max() > 9
    torch.testing.assert_close(chain.place(residual), z, rtol=0, atol=1e-6)


@torch.no_grad()
def test_mixture_draws_are_standard_normal_once_standardised():
    chain, n = mixture(), 20_000
    residual = chain.standardize(chain.rsample(n))
    assert (residual.mean(0).abs() < 5 / n**0.5).all() and ((residual.std(0) - 1).abs() < 5 / (2 * n) ** 0.5).all()
    correlation = torch.corrcoef(residual.T) - torch.eye(3)
    assert (correlation.abs() < 5 / n**0.5).all()
    assert torch.unique(chain.rsample(500, temperature=0.0)[:, 0]).numel() <= 4


# --- radial ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_radial_obeys_the_law(dim, context_dim):
    transform = Radial(dim, context_dim)
    randomize(transform, 0.5)
    context = torch.randn(2, context_dim, dtype=torch.float64) if context_dim else None
    check_bijection(transform, 2 * torch.randn(2, dim, dtype=torch.float64), context)


@pytest.mark.parametrize("beta", [-8.0, 3.0])
def test_radial_formula_also_where_it_hardly_stays_invertible(beta):
    """Eq. 14 of Rezende & Mohamed 2015 written out, with beta just above -alpha and large."""
    radial = Radial(2, 0).double()
    with torch.no_grad():
        radial.free.copy_(torch.tensor([0.5, -1.0, 0.2, beta]))
    centre, alpha = torch.tensor([0.5, -1.0]).double(), nn.functional.softplus(torch.tensor(0.2).double())
    beta = nn.functional.softplus(torch.tensor(beta).double()) - alpha
    z = torch.cat([torch.randn(20, 2), torch.tensor([[0.5, -1.0 + 1e-6]])]).double()
    r = (z - centre).norm(dim=1)
    h, slope = 1 / (alpha + r), -1 / (alpha + r) ** 2
    x, log_det = radial.inverse_and_log_det(z)
    torch.testing.assert_close(x, z + beta * h[:, None] * (z - centre))
    torch.testing.assert_close(log_det, torch.log(1 + beta * h) + torch.log(1 + beta * h + beta * slope * r))
    torch.testing.assert_close(radial(x)[0], z, rtol=0, atol=1e-9)


def test_radial_posterior_density_of_its_own_draws():
    posterior = FlowPosterior(3, 4, 3, Radial, False).double()
    randomize(posterior, 0.3)
    q = posterior(torch.randn(6, 4, dtype=torch.float64))
    z, log_q = q.rsample_and_log_prob(6)
    torch.testing.assert_close(log_q, q.log_prob(z), rtol=0, atol=1e-9)


# --- models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["maf", "maf_mog", "iaf", "planar", "radial", "nsf", "nsf_ar"])
@torch.no_grad()
def test_density_over_the_plane_integrates_to_one_and_latents_give_the_point_back(name):
    config = compose(f"model={name}", "debug=tiny", *shaped((2, 1, 1), None))
    model = ready(build_model(config, torch.float64), scale=0.1)
    draws = model.sample(2000)
    centre, spread = draws.mean(0).flatten(), draws.std(0).flatten()
    axes = [torch.linspace(float(c - 9 * s), float(c + 9 * s), 301, dtype=torch.float64) for c, s in zip(centre, spread)]
    grid = torch.cartesian_prod(*axes).view(-1, 2, 1, 1)
    score = model.score(grid)
    area = (axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])
    assert score.kind is Kind.EXACT
    torch.testing.assert_close(score.nats.exp().sum() * area, torch.ones(()).double(), rtol=0, atol=3e-3)
    torch.testing.assert_close(model.decode(model.encode(draws[:20])), draws[:20], rtol=0, atol=1e-7)
