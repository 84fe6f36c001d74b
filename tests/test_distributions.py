"""Densities against torch.distributions, draws against their densities."""

import pytest
import torch
from torch import distributions as reference

from models.contracts import Bijection
from models.distributions.bases import LearnedMixture, LearnedNormal, StandardNormal
from models.distributions.flow import FlowConditional, FlowDistribution
from models.distributions.mixture import GaussianMixture
from models.distributions.normal import DiagonalNormal

pytestmark = pytest.mark.usefixtures("_seeded")


@pytest.fixture
def _seeded():
    torch.manual_seed(0)


class Scale(Bijection):
    """z = x * factor: forward log-det D log factor."""

    def __init__(self, factor: float):
        super().__init__()
        self.log_factor = torch.nn.Parameter(torch.tensor(factor, dtype=torch.float64).log())

    def forward(self, x, context=None):
        return x * self.log_factor.exp(), self.log_factor.expand(x.shape[0]) * x[0].numel()

    def inverse_and_log_det(self, z, context=None):
        return z * (-self.log_factor).exp(), -self.log_factor.expand(z.shape[0]) * z[0].numel()


@pytest.mark.parametrize("batch", [1, 5])
def test_diagonal_normal_is_torchs(batch):
    mean, log_scale = torch.randn(2, batch, 3, 4, 2, dtype=torch.float64)
    z = torch.randn(5, 3, 4, 2, dtype=torch.float64)
    wanted = reference.Normal(mean, log_scale.exp()).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(DiagonalNormal(mean, log_scale).log_prob(z), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch", [1, 5])
def test_mixture_is_torchs(batch):
    logits = torch.randn(batch, 4, dtype=torch.float64)
    mean, log_scale = torch.randn(2, batch, 4, 3, dtype=torch.float64)
    z = torch.randn(5, 3, dtype=torch.float64)
    components = reference.Independent(reference.Normal(mean, log_scale.exp()), 1)
    wanted = reference.MixtureSameFamily(reference.Categorical(logits=logits), components).log_prob(z)
    torch.testing.assert_close(GaussianMixture(logits, mean, log_scale).log_prob(z), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_the_stated_moments(temperature):
    n = 100_000
    mean, log_scale = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, -1.0]])
    z = DiagonalNormal(mean, log_scale).rsample(n, temperature)
    scale = temperature * log_scale.exp()
    assert ((z.mean(0) - mean).abs() < 5 * scale / n**0.5).all()
    assert ((z.std(0) / scale - 1).abs() < 5 / (2 * n) ** 0.5).all()

    logits, means = torch.tensor([[0.0, 1.0]]), torch.tensor([[[-3.0], [3.0]]])
    z = GaussianMixture(logits, means, torch.zeros(1, 2, 1)).rsample(n, temperature)
    weight = logits.softmax(-1)[0, 1]
    assert abs(z.mean() - (2 * weight - 1) * 3) < 5 * z.std() / n**0.5
    wanted = temperature**2 + 36 * weight * (1 - weight)
    assert abs(z.var() - wanted) < 0.02 * wanted


def test_half_precision_parameters_are_summed_in_float32():
    mean = torch.randn(2, 5000).bfloat16()
    z = torch.randn(2, 5000)
    wanted = reference.Normal(mean.float(), 1.0).log_prob(z).sum(1)
    got = DiagonalNormal(mean, torch.zeros_like(mean)).log_prob(z)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wanted)


def test_flow_distribution_is_torchs_in_both_directions():
    mean, log_scale = torch.randn(2, 1, 3, dtype=torch.float64)
    flow = FlowDistribution(DiagonalNormal(mean, log_scale), [Scale(2.0), Scale(3.0)])
    x, log_prob = flow.rsample_and_log_prob(7)
    wanted = reference.Normal(mean / 6, log_scale.exp() / 6).log_prob(x).sum(1)
    torch.testing.assert_close(log_prob, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(flow.log_prob(x), wanted, rtol=0, atol=1e-10)
    assert x.requires_grad and torch.autograd.grad(x.sum(), list(flow.transforms[0].parameters()))[0] != 0


def test_flow_distribution_scales_the_base_by_the_temperature():
    flow = FlowConditional(StandardNormal([2]), [Scale(4.0)])(None)
    assert abs(flow.rsample(100_000, temperature=0.5).std() - 0.125) < 1e-3
    assert flow.rsample(4, temperature=0.0).eq(0).all()


def test_wrong_number_of_draws_is_one_clear_line():
    with pytest.raises(ValueError, match="5 draws .* batch 3"):
        DiagonalNormal(torch.zeros(3, 2), torch.zeros(3, 2)).rsample(5)


def test_bases_start_standard_and_follow_labels():
    z = torch.randn(6, 2, 2, 2)
    wanted = reference.Normal(0.0, 1.0).log_prob(z).sum((1, 2, 3))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    by_class = LearnedNormal([2, 2, 2], classes=3)
    for base, context in ((StandardNormal([2, 2, 2]), None), (LearnedNormal([2, 2, 2], None), None), (by_class, y)):
        torch.testing.assert_close(base(context).log_prob(z), wanted)
    with torch.no_grad():
        by_class.mean[1] = 1.0
    shifted = reference.Normal(1.0, 1.0).log_prob(z).sum((1, 2, 3))
    torch.testing.assert_close(by_class(y).log_prob(z), torch.where(y == 1, shifted, wanted))
    with pytest.raises(ValueError, match="labels"):
        by_class(None)
    with pytest.raises(ValueError, match="vectors"):
        LearnedMixture([2, 2, 2], 3)


def test_learned_mixture_trains_every_parameter():
    mixture = LearnedMixture([2], 3)
    mixture().log_prob(torch.randn(4, 2)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in mixture.parameters())
