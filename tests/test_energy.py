"""Energy models: the relaxation, the nets, the RBM against enumeration, contrastive learning against exact gradients, AIS."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from models.contracts import DataSpec, Kind
from models.energy.annealing import log_weights, schedule, tune_step_sizes
from models.energy.initial import GaussianNoise, UniformNoise
from models.energy.model import EnergyModel
from models.energy.nets import ConvEnergy
from models.energy.rbm import RBM
from models.objectives.contrastive import Contrastive
from models.samplers.chains import Chains, Persistent, ShortRun
from models.samplers.hmc import HMC
from models.samplers.langevin import Langevin

SHAPES = [(2, 1, 1), (1, 2, 2), (1, 8, 8), (1, 28, 28), (1, 28, 20), (3, 32, 32)]


def image_model(shape=(1, 8, 8), levels=17, temperature=1.0):
    net = ConvEnergy(shape, 4, 3, 0.2)
    return EnergyModel(DataSpec(shape, levels), net, temperature, UniformNoise(-1.0, 1.0), Langevin(3, 0.1, 0.01))


def machine(dims, num_hidden, scale, seed=0):
    torch.manual_seed(seed)
    rbm = RBM(DataSpec((1, 1, dims), 2), num_hidden, 1).double()
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return rbm


def states(n):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=n)), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
def test_convnet_fits_every_shape(shape):
    net = ConvEnergy(shape, 4, 3, 0.2)
    assert net(torch.randn(5, *shape)).shape == (5,)
    net(torch.randn(2, *shape)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_convnet_is_the_published_one_at_cifar_size():
    kernels = [tuple(m.weight.shape) for m in ConvEnergy((3, 32, 32), 64, 3, 0.2).net if hasattr(m, "weight")]
    assert kernels == [(64, 3, 3, 3), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)]


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_survives_the_relaxation(levels):
    model = image_model(levels=levels)
    x = (torch.arange(128) % levels).view(2, 1, 8, 8).to(torch.uint8)
    u = model.relax(x)
    assert u.min() == -1 and u.max() == (x.max() * 2 / (levels - 1) - 1)
    assert torch.equal(model.quantize(u), x)
    assert torch.equal(model.quantize(u + 0.99 / (levels - 1)), x)  # nearest level
    assert torch.equal(model.quantize(10 * torch.ones(1, 1, 8, 8)), torch.full((1, 1, 8, 8), levels - 1, dtype=torch.uint8))


def test_score_is_minus_the_energy_and_says_so():
    model = image_model(temperature=0.25).double()
    x = torch.randint(17, (3, 1, 8, 8), dtype=torch.uint8)
    score = model(x)
    assert score.kind is Kind.UNNORMALIZED
    torch.testing.assert_close(score.nats, -4 * model.net(2 * x.double() / 16 - 1))
    torch.testing.assert_close(sum(score.terms.values()), score.nats)
    samples = model.sample(3)
    assert samples.shape == x.shape and samples.dtype is torch.uint8 and samples.max() <= 16
    with pytest.raises(ValueError, match="integer data"):
        model(torch.rand(3, 1, 8, 8))


def test_samples_follow_the_temperature():
    """At energy u^2 / 2 and sampling temperature tau the chain's variance is tau (up to its step bias)."""
    model = EnergyModel(
        DataSpec((1, 1, 1), None), ConvEnergy([1, 1, 1], 4, 0, 0.2), 1.0, GaussianNoise(1.0), Langevin(300, 0.02, math.sqrt(0.04))
    )
    model.net.forward = lambda u: 0.5 * u.flatten(1).square().sum(1)
    torch.manual_seed(0)
    assert model.sample(20_000).var().item() == pytest.approx(1 / 0.99, rel=0.05)
    model.sampler = Langevin(300, 0.005, math.sqrt(0.01))
    assert model.sample(20_000, temperature=0.25).var().item() == pytest.approx(0.25, rel=0.06)


def test_initial_distributions_match_torch():
    u = torch.empty(5, 2, 3).uniform_(-1, 1)
    uniform, normal = torch.distributions.Uniform(-1.0, 1.0), torch.distributions.Normal(0.0, 0.7)
    torch.testing.assert_close(UniformNoise(-1.0, 1.0).log_prob(u), uniform.log_prob(u).sum((1, 2)))
    torch.testing.assert_close(GaussianNoise(0.7).log_prob(u), normal.log_prob(u).sum((1, 2)))
    torch.manual_seed(0)
    assert GaussianNoise(0.7).draw(torch.empty(50_000)).std().item() == pytest.approx(0.7, rel=0.02)
    drawn = UniformNoise(-1.0, 1.0).draw(torch.empty(50_000))
    assert drawn.abs().max() <= 1 and drawn.var().item() == pytest.approx(1 / 3, rel=0.03)


@pytest.mark.parametrize(("dims", "num_hidden"), [(4, 3), (3, 5)], ids=["few-hidden", "few-visible"])
def test_rbm_free_energy_and_partition_function(dims, num_hidden):
    """Against the joint energy over every (v, h)."""
    rbm = machine(dims, num_hidden, 1.0)
    v, h = states(dims), states(num_hidden)
    joint = (v @ rbm.visible_bias)[:, None] + h @ rbm.hidden_bias + v @ rbm.weight.T @ h.T
    torch.testing.assert_close(-rbm.energy(v), joint.logsumexp(1))
    torch.testing.assert_close(rbm.log_partition(), joint.logsumexp((0, 1)))
    x = v.view(-1, 1, 1, dims).to(torch.uint8)
    assert abs((rbm(x).nats - rbm.log_partition()).logsumexp(0).item()) < 1e-9


def test_rbm_gibbs_sweeps_keep_the_exact_law():
    rbm = machine(4, 3, 1.0)
    v = states(4)
    exact = (-rbm.energy(v)).softmax(0).detach()
    torch.manual_seed(1)
    moved = rbm.move(v[torch.multinomial(exact, 100_000, replacement=True)])[0]
    found = torch.bincount((moved @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long(), minlength=16) / 100_000
    assert (found - exact).abs().max() < 5 * (exact.max() / 100_000).sqrt()
    sample = rbm.sample(5)
    assert sample.shape == (5, 1, 1, 4) and sample.dtype is torch.uint8 and sample.max() <= 1


def test_rbm_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="binary"):
        RBM(DataSpec((1, 2, 2), 3), 2, 1)
    with pytest.raises(ValueError, match="at most 24"):
        RBM(DataSpec((1, 5, 5), 2), 25, 1).log_partition()


class Everything(Chains):
    """Each of the machine's states as often as it deserves, out of a million: sampling without sampling error."""

    def forward(self, model, n):
        v = states(model.spec.dims)
        counts = (1e6 * (-model.energy(v)).softmax(0)).round().long()
        return v.repeat_interleave(counts, 0), {}


def test_contrastive_gradient_is_the_likelihoods():
    """With exact negatives the gradient equals autograd's through log Z summed over all 16 images of 1x2x2."""
    torch.manual_seed(0)
    rbm = RBM(DataSpec((1, 2, 2), 2), 3, 1).double()
    for parameter in rbm.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randint(2, (6, 1, 2, 2), dtype=torch.uint8)
    log_z = (-rbm.energy(states(4))).logsumexp(0)
    exact = torch.autograd.grad((rbm.energy(rbm.relax(x)) + log_z).mean(), list(rbm.parameters()))
    loss = Contrastive(Everything(), 0.0, 0.0)(rbm, (x, None), 0)
    found = torch.autograd.grad(loss.value, list(rbm.parameters()))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    assert not any(v.requires_grad for v in loss.log.values())


def test_contrastive_monitors_noise_and_penalty():
    model = image_model()
    x = torch.randint(17, (4, 1, 8, 8), dtype=torch.uint8)
    torch.manual_seed(0)
    loss = Contrastive(ShortRun(), 0.03, 0.5)(model, (x, None), 0)
    torch.manual_seed(0)
    u = model.relax(x)
    data = model.energy(u + 0.03 * torch.randn_like(u))
    drawn = model.energy(model.move(model.start(4))[0])
    torch.testing.assert_close(loss.value, data.mean() - drawn.mean() + 0.5 * torch.cat([data, drawn]).square().mean())
    torch.testing.assert_close(loss.log["energy_difference_nats"], data.mean() - drawn.mean())
    torch.testing.assert_close(loss.log["energy_data_nats"], data.mean())
    assert set(loss.log) == {"energy_data_nats", "energy_model_nats", "energy_difference_nats", "langevin_drift"}
    loss.value.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if not n.endswith("8.bias"))


def test_contrastive_needs_an_energy():
    with pytest.raises(ValueError, match="objective=likelihood"):
        Contrastive(ShortRun(), 0.0, 0.0)(torch.nn.Identity(), (torch.zeros(1, 1, 2, 2), None), 0)


def test_contrastive_learning_fits_a_gaussian():
    """One free precision: persistent Langevin chains recover that of the data."""
    torch.manual_seed(0)
    model = EnergyModel(
        DataSpec((1, 1, 1), None), torch.nn.Linear(1, 1, bias=False), 1.0, GaussianNoise(1.0), Langevin(10, 0.02, math.sqrt(0.04))
    )
    precision = model.net.weight
    torch.nn.init.constant_(precision, 2.0)
    model.net.forward = lambda u: 0.5 * precision.abs().sum() * u.flatten(1).square().sum(1)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    objective = Contrastive(Persistent(2000, 0.0), 0.0, 0.0)
    trace = []
    for step in range(200):
        optimizer.zero_grad()
        objective(model, (0.5 * torch.randn(1000, 1, 1, 1), None), step).value.backward()
        optimizer.step()
        trace.append(abs(precision.item()))
    assert sum(trace[-100:]) / 100 == pytest.approx(4.0, rel=0.08)


def anneal(path, num_temperatures, chains, power=1.0, step=0.5):
    betas = schedule(num_temperatures, power)
    sizes = tune_step_sizes(path, betas, 50, step, 0.65)
    w = log_weights(path, betas, sizes, chains)
    scaled = (w - w.max()).exp()
    return w, (w.max() + scaled.mean().log()).item(), (scaled.std() / scaled.mean() / chains**0.5).item()


def test_ais_agrees_with_an_exact_partition_function():
    """20 hidden units, enumerated; and the mean log weight stays below, as a stochastic lower bound must."""
    rbm = machine(16, 20, 0.5)
    exact = rbm.log_partition().item()
    torch.manual_seed(0)
    path = rbm.annealing_path(HMC(1, 0.1, 1))
    w, estimate, stderr = anneal(path, 200, 500)
    assert stderr < 0.05
    assert abs(estimate - exact) < 5 * stderr
    assert exact - 0.5 < w.mean().item() < exact + 5 * w.std().item() / 500**0.5
    crude = anneal(path, 2, 500)[0].mean().item()
    assert crude < exact - 5 * stderr  # few temperatures: a visibly looser bound


@pytest.mark.parametrize("initial", [GaussianNoise(1.0), UniformNoise(-1.0, 1.0)], ids=["gaussian", "box"])
def test_ais_agrees_with_a_gaussian_energy(initial):
    """Energy (u - 0.3)^2 / (2 s^2) in 3 dimensions; in a box its normaliser is that of the truncated Gaussian."""
    s, d = 0.4, 3
    net = ConvEnergy([1, 1, d], 2, 0, 0.2).double()
    model = EnergyModel(DataSpec((1, 1, d), None), net, s**2, initial, Langevin(1, 0.1, 0.1))
    model.net.forward = lambda u: 0.5 * (u - 0.3).flatten(1).square().sum(1)
    mass = 1.0
    if initial.box:
        normal = torch.distributions.Normal(0.3, s)
        mass = (normal.cdf(torch.tensor(1.0)) - normal.cdf(torch.tensor(-1.0))).item()
    exact = d * (math.log(s) + 0.5 * math.log(2 * math.pi) + math.log(mass))
    torch.manual_seed(0)
    path = model.annealing_path(HMC(1, 0.5, 3))
    w, estimate, stderr = anneal(path, 40, 2000)
    assert stderr < 0.02
    assert abs(estimate - exact) < 5 * stderr
    assert w.mean().item() < exact + 5 * w.std().item() / 2000**0.5
    assert ("[-1, 1]" in path.space) == (initial.box is not None)


def test_annealing_moves_leave_their_density_invariant():
    """The RBM's move at beta keeps f_beta, checked on every state: a mistake there biases AIS only slightly."""
    rbm = machine(4, 3, 1.5)
    path, v, beta = rbm.annealing_path(HMC(1, 0.1, 1)), states(4), 0.6
    law = path.log_density(v, beta).softmax(0).detach()
    h = states(3)
    to_h = F.logsigmoid((2 * h - 1)[None] * (beta * (v @ rbm.weight.T + rbm.hidden_bias))[:, None]).sum(2).exp()
    back = F.logsigmoid((2 * v - 1)[None] * (rbm.visible_bias + beta * h @ rbm.weight)[:, None]).sum(2).exp()
    torch.testing.assert_close(law @ to_h @ back, law)
    torch.manual_seed(0)
    moved = path.move(v[torch.multinomial(law, 100_000, replacement=True)], beta, 1.0)[0]
    found = torch.bincount((moved @ torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)).long(), minlength=16) / 100_000
    assert (found - law).abs().max() < 5 * (law.max() / 100_000).sqrt()
    exact = path.log_density(v, 0.0).logsumexp(0).item()
    assert path.log_z0 == pytest.approx(exact, abs=1e-9)
