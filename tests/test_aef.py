"""Autoencoders within flows: the bijection against autograd and by hand, its partition, and the VAE of the same parts."""

from __future__ import annotations

from functools import partial
from math import log

import pytest
import torch
from torch import nn

from models.contracts import DataSpec, Kind
from models.distributions.bases import StandardNormal
from models.flow.aef import Autoencoder
from models.flow.flow import Flow
from models.latent.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from models.transforms.actnorm import ActNorm
from models.transforms.autoencoder import AutoencoderBijection, Centre, Corner, First, GaussianCoder, VariationalAutoencoder
from models.transforms.lu_linear import LULinear
from models.transforms.sequence import Sequential
from models.nn.data_init import initialize
from tests.checks_bijection import check_bijection, randomize


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def coder(dependent=True):
    return partial(
        GaussianCoder, encoder=partial(MLPEncoder, hidden=[6], activation=nn.Tanh),
        decoder=partial(MLPDecoder, hidden=[6], activation=nn.Tanh), dependent=dependent,
    )  # fmt: skip


def conv_coder(dependent=True):
    return partial(
        GaussianCoder, encoder=partial(ConvEncoder, channels=[2, 2], features=5),
        decoder=partial(ConvDecoder, channels=[2, 2], features=5), dependent=dependent,
    )  # fmt: skip


@pytest.mark.parametrize("core", [Centre(), Corner()])
@pytest.mark.parametrize("parts", [coder(), coder(dependent=False), conv_coder()])
def test_autoencoder_is_a_bijection(core, parts):
    layer = AutoencoderBijection((2, 3, 4), 5, core, parts).double()
    randomize(layer, 0.3)
    check_bijection(layer, torch.randn(2, 2, 3, 4, dtype=torch.float64))


def test_the_equations_by_hand():
    """The first latents come out first, the shell's deviations after them, in raster order."""
    layer = AutoencoderBijection((1, 2, 2), 1, Corner(), coder()).double()
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    without = x.clone()
    without[:, 0, 0, 0] = 0
    mean, scale = layer.coder.encode(without)
    z = mean + scale * x[:, 0, 0, :1]
    image_mean, image_scale = layer.coder.decode(z)
    deviation = ((x - image_mean) / image_scale).flatten(1)[:, 1:]
    out, log_det = layer(x)
    torch.testing.assert_close(out, torch.cat([z, deviation], 1))
    torch.testing.assert_close(log_det, scale.log().sum(1) - image_scale.flatten(1)[:, 1:].log().sum(1))


def test_cores():
    """Squares of pixels, all channels of one before the next."""
    grid = torch.zeros(2, 4, 4)
    grid.view(-1)[Centre().places((2, 4, 4), 8)] = 1
    assert grid.sum() == 8 and grid[:, 1:3, 1:3].sum() == 8
    grid = torch.zeros(1, 5, 3)
    grid.view(-1)[Corner().places((1, 5, 3), 4)] = 1
    assert grid.sum() == 4 and grid[:, :2, :2].sum() == 4
    for count in (0, 16):
        with pytest.raises(ValueError, match="latent_dim must be at least 1 and less than the 16"):
            Centre().places((1, 4, 4), count)


def test_first_leaves_the_rest():
    first = First(3, LULinear(3)).double()
    randomize(first, 0.3)
    x = torch.randn(2, 5, dtype=torch.float64)
    check_bijection(first, x)
    assert torch.equal(first(x)[0][:, 3:], x[:, 3:])


def flow(layer, latent_dim=2, shape=(1, 2, 2)):
    architecture = Autoencoder(latent_dim, ActNorm, layer, 1, {"linear": LULinear})
    model = Flow(DataSpec(shape, None), None, None, architecture, StandardNormal, False).double().eval()
    initialize(model, torch.randn(64, *shape, dtype=torch.float64))
    randomize(model, 0.3)
    return model


def test_exact_likelihood_and_the_bound_of_the_vae():
    """The AEF's is EXACT; of a VAE with the same parts, the weights average to the density that integration over z gives."""
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    assert flow(partial(AutoencoderBijection, core=Centre(), coder=coder())).score(x).kind == Kind.EXACT
    model = flow(partial(VariationalAutoencoder, coder=coder()), latent_dim=1)
    with torch.no_grad():
        score = model.score(x.expand(20_000, 1, 2, 2))
        norm, layer, prior = model.transforms
        z = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
        v, log_det = norm(x)
        mean, scale = layer.coder.decode(z)
        data = torch.distributions.Normal(mean, scale).log_prob(v).flatten(1).sum(1)
        top, prior_log_det = prior(z)
        joint = data + prior_log_det + torch.distributions.Normal(0.0, 1.0).log_prob(top).sum(1)
        exact = torch.logsumexp(joint + log(24 / 4000), 0) + log_det[0]
    assert score.kind == Kind.WEIGHT
    weights = score.nats.exp()
    error = weights.std() / len(weights) ** 0.5
    assert 0 < error < 0.1 * exact.exp()
    assert (weights.mean() - exact.exp()).abs() < 5 * error
    assert score.nats.mean() < exact


@pytest.mark.parametrize("layer", [AutoencoderBijection, VariationalAutoencoder])
def test_samples_follow_the_density(layer):
    """E[exp(-nats) 1(x in a box)] over draws is the box's volume."""
    keywords = {"core": Centre()} if layer is AutoencoderBijection else {}
    model = flow(partial(layer, coder=coder(), **keywords), latent_dim=1, shape=(1, 1, 2))
    with torch.no_grad():
        samples = model.sample(200_000)
        low, high = samples.quantile(0.2, 0), samples.quantile(0.8, 0)
        inside = ((samples > low) & (samples < high)).flatten(1).all(1)
        grid = torch.rand(200_000, 1, 1, 2, dtype=torch.float64) * (high - low) + low
        mass = model.score(grid).nats.exp() * (high - low).prod()
    error = (mass.std() / len(mass) ** 0.5) + (inside.double().std() / len(inside) ** 0.5)
    assert (inside.double().mean() - mass.mean()).abs() < 5 * error < 0.05


def test_architecture_without_a_prior_flow():
    transforms, left = Autoencoder(3, ActNorm, partial(AutoencoderBijection, core=Corner(), coder=coder()), 0, {})((1, 3, 3))
    assert len(transforms) == 2 and left == (9,)
    transforms, left = Autoencoder(3, ActNorm, partial(VariationalAutoencoder, coder=coder()), 2, {"linear": LULinear})((1, 3, 3))
    assert left == (3,) and isinstance(transforms[2].bijection, Sequential) and len(transforms[2].bijection.parts) == 2
