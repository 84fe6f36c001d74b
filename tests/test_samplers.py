"""Markov kernels: stationary moments against closed forms, purity, and the state of persistent chains."""

import math

import pytest
import torch
from torch import nn

from models.contracts import DataSpec
from models.energy.initial import GaussianNoise, UniformNoise
from models.energy.model import EnergyModel
from models.energy.nets import ConvEnergy
from models.samplers.chains import Persistent, ShortRun
from models.samplers.hmc import HMC
from models.samplers.langevin import Langevin

PRECISION = torch.tensor([[2.0, 0.8], [0.8, 1.0]], dtype=torch.float64)


def gaussian(x):
    return 0.5 * torch.einsum("bi,ij,bj->b", x, PRECISION, x)


def toy(sampler, initial=None):
    torch.manual_seed(0)
    net = ConvEnergy([2, 1, 1], 8, 0, 0.2)
    return EnergyModel(DataSpec((2, 1, 1), None), net, 1.0, initial or GaussianNoise(1.0), sampler)


def test_langevin_has_the_moments_of_its_discretisation():
    """x' = (I - sP) x + sqrt(2s) n is linear: its stationary covariance is (P (I - sP / 2))^-1, not P^-1."""
    torch.manual_seed(1)
    step = 0.3
    x, log = Langevin(80, step, math.sqrt(2 * step))(gaussian, torch.zeros(40_000, 2, dtype=torch.float64))
    expected = torch.linalg.inv(PRECISION @ (torch.eye(2) - 0.5 * step * PRECISION))
    assert (x.T.cov() - expected).abs().max() < 5 * 2**0.5 * expected.max() / 40_000**0.5
    assert (torch.linalg.inv(PRECISION) - expected).abs().max() > 0.1  # so the bound above tells the two apart
    assert log["langevin_drift"].dim() == 0


def test_langevin_noise_sets_the_temperature():
    """At noise sqrt(2 s tau) the covariance is tau times larger."""
    torch.manual_seed(2)
    step, tau = 0.01, 0.25
    x, _ = Langevin(400, step, math.sqrt(2 * step * tau))(lambda u: 0.5 * u.square().sum(1), torch.zeros(20_000, 1))
    assert x.var().item() == pytest.approx(tau / (1 - step / 2), rel=0.05)


def test_langevin_without_noise_is_gradient_descent():
    x, log = Langevin(1, 0.1, 0.0)(gaussian, torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    gradient = PRECISION @ torch.tensor([1.0, -2.0], dtype=torch.float64)
    torch.testing.assert_close(x[0], torch.tensor([1.0, -2.0], dtype=torch.float64) - 0.1 * gradient)
    torch.testing.assert_close(log["langevin_drift"], 0.1 * gradient.norm())


@pytest.mark.parametrize("num_leapfrog", [1, 4], ids=["mala", "hmc"])
def test_hmc_is_exact_at_a_large_step(num_leapfrog):
    """At a step where Langevin's covariance would be off by far more than the tolerance."""
    torch.manual_seed(3)
    x, log = HMC(60, 0.8, num_leapfrog)(gaussian, torch.zeros(40_000, 2, dtype=torch.float64))
    expected = torch.linalg.inv(PRECISION)
    assert (x.T.cov() - expected).abs().max() < 5 * 2**0.5 * expected.max() / 40_000**0.5
    assert 0.3 < log["acceptance"] < 0.99


def test_hmc_in_a_box_follows_the_truncated_density():
    """exp(-2u) on [-1, 1] has mean 1/2 - coth(2), and reflection keeps the walls exact."""
    torch.manual_seed(4)
    x = torch.empty(40_000, 1, dtype=torch.float64).uniform_(-1, 1)
    x, _ = HMC(30, 0.7, 3).move(lambda u: 2 * u[:, 0], x, 0.7, box=(-1.0, 1.0))
    assert x.abs().max() <= 1
    assert x.mean().item() == pytest.approx(0.5 - 1 / math.tanh(2.0), abs=5 * x.std().item() / 200)


def test_hmc_rejects_what_overflows():
    x = torch.tensor([[1.0], [2.0]])
    moved, log = HMC(1, 1e30, 2)(lambda u: u[:, 0] ** 4, x)
    assert torch.equal(moved, x) and log["acceptance"] == 0


class Watched(nn.Module):
    """A quadratic energy with a parameter and a mode."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return 0.5 * self.scale * x.square().sum(1)


@pytest.mark.parametrize("sampler", [Langevin(3, 0.1, 0.1), HMC(2, 0.1, 2)], ids=["langevin", "hmc"])
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("mode", [True, False])
def test_samplers_are_pure(sampler, context, mode):
    energy = Watched().train(mode)
    x = torch.ones(4, 2)
    with context():
        torch.manual_seed(5)
        moved, log = sampler(energy, x)
    assert not torch.equal(moved, x) and torch.equal(x, torch.ones(4, 2))
    assert not moved.requires_grad and not any(v.requires_grad for v in log.values())
    assert energy.scale.grad is None and energy.scale.requires_grad
    assert set(energy.modes) == {mode} and energy.training is mode
    torch.manual_seed(5)
    assert torch.equal(moved.clone(), sampler(energy, x)[0])  # the caller's context changes nothing


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="at least one step"):
        Langevin(0, 1.0, 0.1)
    with pytest.raises(ValueError, match="at least 1"):
        HMC(1, 0.1, 0)
    with pytest.raises(ValueError, match="low < high"):
        UniformNoise(1.0, 1.0)
    with pytest.raises(ValueError, match="raise the size"):
        Persistent(2, 0.0)(toy(Langevin(1, 0.1, 0.1)), 3)


def test_short_run_chains_are_the_models_own_draws():
    model = toy(Langevin(5, 0.1, 0.1))
    torch.manual_seed(6)
    states, log = ShortRun()(model, 7)
    torch.manual_seed(6)
    assert torch.equal(states, model.sample(7)) and "langevin_drift" in log


def test_persistent_chains_go_on_from_where_they_were():
    model = toy(Langevin(1, 0.0, 0.0))  # a kernel that stays: the pool must come back as it began
    chains = Persistent(6, 0.0)
    first = chains(model, 6)[0]
    second = chains(model, 6)[0]
    assert torch.equal(first.flatten().sort().values, second.flatten().sort().values)
    restarted = Persistent(6, 1.0)
    a, b = restarted(model, 6)[0], restarted(model, 6)[0]
    assert not torch.isin(a, b).any()


def test_persistent_chains_survive_a_checkpoint(tmp_path):
    """What a rank saves, read back as checkpoints are, gives the same draws; a rank without a state starts afresh."""
    model, chains = toy(Langevin(2, 0.1, 0.1)), Persistent(8, 0.1)
    assert chains.rank_state() == {}
    chains(model, 4)
    assert not list(chains.buffers()) and not chains.state_dict()  # DDP broadcasts buffers; rank 0's state dict serves all
    torch.save(chains.rank_state(), tmp_path / "state")
    reopened = Persistent(8, 0.1)
    reopened.load_rank_state(torch.load(tmp_path / "state", weights_only=True))
    torch.manual_seed(7)
    expected = [chains(model, 4)[0] for _ in range(3)]
    torch.manual_seed(7)
    assert all(torch.equal(e, reopened(model, 4)[0]) for e in expected)
    assert torch.equal(chains.rank_state()["pool"], reopened.rank_state()["pool"])
    reopened.load_rank_state({})
    assert reopened(model, 4)[0].shape == (4, 2, 1, 1)


def test_saved_chains_stand_still_while_the_pool_goes_on():
    model, chains = toy(Langevin(2, 0.1, 0.1)), Persistent(4, 0.0)
    chains(model, 4)
    saved = chains.rank_state()["pool"]
    before = saved.clone()
    chains(model, 4)
    assert torch.equal(saved, before)
