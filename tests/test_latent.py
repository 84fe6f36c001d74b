"""The VAE: its bounds on a model whose likelihood is known, its normalization, its nets."""

from __future__ import annotations

from functools import partial
from itertools import product
from math import log

import pytest
import torch
from torch import nn

from models.contracts import DataSpec, GenerativeModel, Kind
from models.distributions.bases import LearnedMixture, StandardNormal
from models.distributions.normal import DiagonalNormal
from models.latent.nets import ConvDecoder, ConvEncoder, Encoder, MLPDecoder, MLPEncoder
from models.latent.posteriors import DiagonalPosterior, FlowPosterior
from models.latent.priors import FlowPrior
from models.latent.vae import VAE, kl_from_standard
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from models.likelihoods.gaussian import Gaussian
from models.likelihoods.logistic import DiscretizedLogistic
from models.nn.data_init import initialize
from models.objectives.importance_weighted import ImportanceWeighted
from models.transforms.affine_maps import Affine, Gate
from models.transforms.autoregressive import InverseAutoregressive, MaskedAutoregressive
from models.transforms.planar import Planar

IAF = partial(InverseAutoregressive, hidden=[8], activation=nn.ELU, scalar_map=partial(Gate, bias=1.5))
MAF = partial(MaskedAutoregressive, hidden=[8], activation=nn.ReLU, scalar_map=partial(Affine, bound=3.0))
POSTERIORS = {
    "diagonal": DiagonalPosterior,
    "planar": partial(FlowPosterior, num_steps=2, transform=Planar, flip=False),
    "iaf": partial(FlowPosterior, num_steps=2, transform=IAF, flip=True),
}
PRIORS = {
    "standard": StandardNormal,
    "mixture": partial(LearnedMixture, components=3),
    "flow": partial(FlowPrior, num_steps=2, transform=MAF),
}
MLP = {"hidden": [8], "activation": nn.Tanh}
CONV = {"channels": [4, 6], "features": 8}


def vae(spec, likelihood, latent_dim=2, posterior="diagonal", prior="standard", conv=False, **options):
    torch.manual_seed(0)
    encoder, decoder, sizes = (ConvEncoder, ConvDecoder, CONV) if conv else (MLPEncoder, MLPDecoder, MLP)
    options = {"analytic_kl": False, "data_bias": False, "conditional": False} | options
    return VAE(
        spec, latent_dim, partial(encoder, **sizes), partial(decoder, **sizes),
        POSTERIORS[posterior], PRIORS[prior], likelihood, **options,
    )  # fmt: skip


def widen(model: VAE, log_factor: float) -> VAE:
    """Scale the posterior's Gaussian: weights of a posterior narrower than the prior have an infinite variance."""
    for module in model.modules():
        if isinstance(module, DiagonalPosterior):
            module.linear.bias.data.chunk(2)[1].add_(log_factor)
    return model


# --- a linear-Gaussian model, whose log p(x) is known ------------------------------------------------------------------


class Pixels(Encoder):
    """The image itself as features."""

    def __init__(self, spec, labels):
        super().__init__(spec)
        self.features = spec.dims

    def forward(self, x, labels):
        return x.flatten(1)


class LinearGaussian(nn.Module):
    """z -> mean W z + b and a constant log scale, as head parameters [B, 2, 2, 2]."""

    def __init__(self, inputs, outputs, weight, log_scale):
        super().__init__()
        self.weight, self.log_scale = nn.Parameter(weight), log_scale
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2, 0.1, 0.5]))

    def forward(self, z):
        mean = (z @ self.weight.T + self.bias.to(z.dtype)).view(-1, 1, 2, 2)
        return torch.cat([mean, torch.full_like(mean, self.log_scale)], 1)


def linear_gaussian(shift=0.0, log_factor=0.0, scale=0.6, analytic_kl=False):
    """A VAE with x = W z + b + scale e, W's columns orthogonal, so that the true posterior is diagonal.

    Its own posterior is the true one with means off by ``shift`` and scales by exp(``log_factor``). Also returns log p(x)
    as a torch distribution and the KL from its posterior to the true one.
    """
    torch.manual_seed(0)
    spec = DataSpec((1, 2, 2), None)
    weight = torch.linalg.qr(torch.randn(4, 2, dtype=torch.float64))[0] * torch.tensor([1.5, 0.7], dtype=torch.float64)
    model = VAE(
        spec, 2, Pixels, partial(LinearGaussian, weight=weight, log_scale=log(scale)), DiagonalPosterior, StandardNormal,
        Gaussian(spec, -20.0), analytic_kl=analytic_kl, data_bias=False, conditional=False,
    ).double()  # fmt: skip
    variance = 1 / (1 + weight.square().sum(0) / scale**2)
    gain = variance[:, None] * weight.T / scale**2
    bias = model.decoder.bias.detach()
    with torch.no_grad():
        model.posterior.linear.weight.copy_(torch.cat([gain, torch.zeros(2, 4)]))
        model.posterior.linear.bias.copy_(torch.cat([shift - gain @ bias, 0.5 * variance.log() + log_factor]))
    covariance = weight @ weight.T + scale**2 * torch.eye(4, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(bias, covariance)
    gap = 0.5 * (torch.exp(torch.tensor(2 * log_factor)) + shift**2 / variance - 1 - 2 * log_factor).sum()
    return model, truth, gap


@torch.no_grad()
def test_exact_posterior_makes_every_weight_the_likelihood():
    model, truth, _ = linear_gaussian()
    x = torch.randn(5, 1, 2, 2, dtype=torch.float64)
    exact = truth.log_prob(x.flatten(1))
    assert model.score(x).kind == Kind.WEIGHT
    torch.testing.assert_close(model.score(x).nats, exact)
    torch.testing.assert_close(model.log_weights(x, None, 3).nats, exact[:, None].expand(5, 3))


@torch.no_grad()
def test_bounds_are_ordered_and_tighten():
    """ELBO <= IWAE_5 <= IWAE_50 <= log p, the ELBO lower by exactly KL(q || true posterior)."""
    model, truth, gap = linear_gaussian(shift=0.4, log_factor=0.3)
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    exact = truth.log_prob(x.flatten(1)).item()
    draws = model.log_weights(x, None, 100_000).nats[0]
    bounds = [torch.logsumexp(draws.view(-1, k), 1) - log(k) for k in (1, 5, 50)]
    means = [bound.mean().item() for bound in bounds]
    errors = [bound.std().item() / len(bound) ** 0.5 for bound in bounds]
    assert abs(means[0] - (exact - gap.item())) < 5 * errors[0]
    assert means[0] < means[1] < means[2] < exact
    assert exact - means[2] < 0.1 * gap.item()
    average = (draws - exact).exp()
    assert abs(average.mean().item() - 1) < 5 * average.std().item() / len(average) ** 0.5


@torch.no_grad()
def test_analytic_kl_is_the_same_bound_and_only_that():
    model, truth, gap = linear_gaussian(shift=0.4, log_factor=0.3, analytic_kl=True)
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    score = model.score(x.expand(20_000, -1, -1, -1))
    assert score.kind == Kind.LOWER
    error = score.nats.std().item() / len(score.nats) ** 0.5
    assert abs(score.nats.mean().item() - (truth.log_prob(x.flatten(1)) - gap).item()) < 5 * error


@torch.no_grad()
def test_analytic_kl_inside_an_importance_average_exceeds_the_likelihood_and_is_refused():
    """With the exact, narrow posterior the average of exp(data - KL) exceeds p(x) by (1 - log 2) / 2 nats a dimension."""
    model, truth, _ = linear_gaussian(scale=1e-4, analytic_kl=True)
    x = model.sample(1)
    score = model.log_weights(x, None, 100_000)
    weights = (score.nats[0] - truth.log_prob(x.flatten(1))).exp()
    excess = weights.mean().log().item()
    assert abs(excess - 2 * (1 - log(2)) / 2) < 5 * (weights.std() / weights.mean()).item() / len(weights) ** 0.5
    assert not score.kind.may_average_weights
    with pytest.raises(ValueError, match="analytic_kl=false"):
        ImportanceWeighted(5)(model, (x, None), 0)


@torch.no_grad()
def test_kl_matches_torch():
    torch.manual_seed(0)
    mean, log_scale = torch.randn(6, 3), torch.randn(6, 3)
    theirs = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, log_scale.exp()), torch.distributions.Normal(torch.zeros(3), torch.ones(3))
    ).sum(1)
    torch.testing.assert_close(kl_from_standard(DiagonalNormal(mean, log_scale)), theirs)


# --- discrete data: normalization and numerical integration --------------------------------------------------------------

IMAGES = torch.tensor(list(product(range(3), repeat=4)), dtype=torch.uint8).view(-1, 1, 2, 2)
SMALL = DataSpec((1, 2, 2), 3)


@pytest.mark.parametrize("posterior, prior", [*product(POSTERIORS, ["standard"]), ("iaf", "mixture"), ("iaf", "flow")])
@torch.no_grad()
def test_weights_estimate_the_integral_and_sum_to_one(posterior, prior):
    """p(x) by a grid over z for all 81 images: it sums to 1, and so do, image by image, the mean weights."""
    model = widen(vae(SMALL, Categorical(SMALL), posterior=posterior, prior=prior), 1.0).double()
    line = torch.linspace(-7, 7, 71, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    log_prior = model.prior().log_prob(z) + 2 * log(14 / 70)
    params = model.decoder(z)
    exact = torch.stack(
        [torch.logsumexp(log_prior + model.likelihood.log_prob(params, x.expand(len(z), -1, -1, -1)), 0) for x in IMAGES]
    )
    torch.testing.assert_close(exact.exp().sum(), torch.ones((), dtype=torch.float64), rtol=0, atol=2e-3)
    weights = model.log_weights(IMAGES, None, 1000).nats.exp()
    sums = weights.sum(0)
    assert abs(sums.mean() - 1) < 5 * sums.std() / len(sums) ** 0.5
    error = weights.std(1) / weights.shape[1] ** 0.5
    assert ((weights.mean(1) - exact.exp()).abs() < 5 * error + 1e-5).all()


@torch.no_grad()
def test_conditional_probabilities_sum_to_one_for_each_label():
    spec = DataSpec((1, 2, 2), 3, classes=2)
    model = widen(vae(spec, Categorical(spec), conditional=True), 1.0).double()
    totals = []
    for label in range(2):
        sums = model.log_weights(IMAGES, torch.full((81,), label), 500).nats.exp().sum(0)
        assert abs(sums.mean() - 1) < 5 * sums.std() / len(sums) ** 0.5
        totals.append(model.decode(torch.zeros(1, 2).double(), torch.tensor([label])))
    assert not torch.allclose(*totals), "the decoder sees the label"
    with pytest.raises(ValueError, match="give labels"):
        model.score(IMAGES)


# --- parts and refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(
    "shape, levels", [((1, 28, 28), 2), ((1, 8, 8), 17), ((3, 32, 32), 256), ((1, 28, 20), 256), ((1, 2, 2), 3), ((2, 1, 3), 2)]
)
def test_any_image_size(shape, levels, conv):
    """Score, gradients, samples and reconstructions at every shape, with labels."""
    spec = DataSpec(shape, levels, classes=3)
    model = vae(spec, DiscretizedLogistic(spec, -7.0), conv=conv, conditional=True)
    x, y = torch.randint(0, levels, (4, *shape), dtype=torch.uint8), torch.arange(4) % 3
    score = model(x, y)
    assert score.nats.shape == (4,) and score.nats.isfinite().all()
    torch.testing.assert_close(score.terms["data"] + score.terms["kl"], score.nats)
    score.nats.mean().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.sample(4, y).shape == x.shape and model.reconstruct(x, y).shape == x.shape


def test_log_weights_are_independent_scores():
    """Overriding the repeated scoring pass changes the cost only: same distribution, k different draws an example."""
    model = vae(SMALL, Categorical(SMALL)).double()
    x = IMAGES[:2]
    ours, plain = model.log_weights(x, None, 4000), GenerativeModel.log_weights(model, x, None, 4000)
    assert ours.nats.shape == plain.nats.shape == (2, 4000) and ours.kind == plain.kind == Kind.WEIGHT
    assert len(ours.nats[0].unique()) == 4000
    error = (ours.nats.var(1) / 4000 + plain.nats.var(1) / 4000).sqrt()
    assert ((ours.nats.mean(1) - plain.nats.mean(1)).abs() < 5 * error).all()
    torch.testing.assert_close(sum(ours.terms.values()), ours.nats)


def test_data_bias_starts_at_the_mean_image():
    spec = DataSpec((1, 2, 3), 2)
    model = vae(spec, Bernoulli(spec), data_bias=True)
    x = (torch.rand(500, 1, 2, 3) < torch.linspace(0.1, 0.9, 6).view(1, 1, 2, 3)).to(torch.uint8)
    with pytest.raises(RuntimeError, match="initialis"):
        model.score(x)
    initialize(model, x)
    model.decoder.net[-2].weight.data.zero_()
    torch.testing.assert_close(model.decode(torch.randn(1, 2))[0], x.float().mean(0))


def test_temperature_zero_draws_the_prior_mean():
    model = vae(SMALL, Categorical(SMALL))
    model.likelihood.sample = lambda params: params
    samples = model.sample(3, temperature=0.0)
    torch.testing.assert_close(samples, samples[:1].expand_as(samples))
    assert not torch.allclose(model.sample(3), samples)


def test_impossible_combinations_say_so():
    with pytest.raises(ValueError, match="posterior=diagonal and prior=standard"):
        vae(SMALL, Categorical(SMALL), posterior="iaf", analytic_kl=True)
    with pytest.raises(ValueError, match="posterior=diagonal and prior=standard"):
        vae(SMALL, Categorical(SMALL), prior="mixture", analytic_kl=True)
    with pytest.raises(ValueError, match="labels"):
        vae(SMALL, Categorical(SMALL), conditional=True)
    with pytest.raises(ValueError, match="likelihood=bernoulli"):
        vae(SMALL, Categorical(SMALL), data_bias=True)
