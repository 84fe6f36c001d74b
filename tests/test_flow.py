"""Flows over images: normalization by enumeration, samples against scores, latents and labels."""

from copy import deepcopy
from functools import partial
from itertools import product
from math import log

import pytest
import torch

from models.contracts import DataSpec, Kind
from models.distributions.bases import LearnedNormal
from models.flow.flow import Flow
from models.flow.multiscale import MultiScale
from models.nn.data_init import initialize
from models.transforms.actnorm import ActNorm
from models.transforms.conditioners import GlowNet
from models.transforms.conv1x1 import Conv1x1
from models.transforms.coupling import Coupling
from models.transforms.dequantize import UniformDequantization
from models.transforms.maps import Additive, SigmoidAffine
from models.transforms.rescale import Rescale
from models.transforms.sequence import Sequential
from models.transforms.split import ConvNormal, Split
from models.transforms.squeeze import Squeeze
from tests.checks_bijection import randomize


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def step(scalar_map):
    return {
        "actnorm": ActNorm,
        "conv1x1": Conv1x1,
        "coupling": partial(Coupling, conditioner=partial(GlowNet, width=4), scalar_map=scalar_map),
    }


def split(channels):
    return Split(channels, ConvNormal)


def multi_scale(num_levels, scalar_map=SigmoidAffine):
    return MultiScale(num_levels, 2, step(scalar_map), split)


def split_without_squeeze(shape):
    """A split inside a 1x2x2 image, small enough to enumerate: [1, 2, 2] -> [4, 1, 1] -> [2, 1, 1]."""
    first, second = ([make(channels) for make in step(SigmoidAffine).values()] for channels in (4, 2))
    return [Sequential([Squeeze(), *first]), split(4), Sequential(second)], (2, 1, 1)


def flow(shape, levels, architecture, classes=None, scatter=0.05):
    """A float64 flow with every parameter moved off its starting point."""
    spec = DataSpec(shape, levels, classes)
    model = Flow(spec, UniformDequantization(levels), Rescale(1.0, -0.5), architecture, LearnedNormal, classes is not None)
    x = torch.randint(0, levels, (256, *shape))
    initialize(model, x, None if classes is None else torch.randint(0, classes, (256,)))
    randomize(model, scatter)
    return model.double().eval()


ARCHITECTURES = {"affine": multi_scale(1), "additive": multi_scale(1, Additive), "split": split_without_squeeze}


def mean_and_variance(values):
    return values.mean(0), values.var(0) / len(values)


@torch.no_grad()
def probabilities(model, x, repeats):
    """E_u exp(nats) of every image of x, and the variances of these means."""
    return mean_and_variance(torch.stack([model(x).nats.exp() for _ in range(repeats)]))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_probabilities_sum_to_the_mass_in_the_cube_and_samples_have_them(name):
    model = flow((1, 2, 2), 3, ARCHITECTURES[name])
    images = torch.tensor(list(product(range(3), repeat=4))).view(81, 1, 2, 2)
    p, p_variance = probabilities(model, images, 700)

    n = 100_000
    with torch.no_grad():
        bins = torch.floor(3 * model.sample_continuous(n)).long().flatten(1)
    inside = ((bins >= 0) & (bins < 3)).all(1)
    counts = torch.bincount((bins[inside] * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81)
    frequency = counts / n
    error = (p_variance + torch.maximum(p, frequency) / n).sqrt()
    assert ((p - frequency).abs() < 5 * error).all()

    mass = inside.double().mean()
    assert abs(p.sum() - mass) < 5 * (p_variance.sum() + mass * (1 - mass) / n).sqrt()
    assert 0.1 < p.sum() < 1


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_the_density_integrates_to_one_over_the_reals(name):
    model = flow((1, 2, 2), 3, ARCHITECTURES[name])
    v = model.sample_continuous(20_000).flatten(1)
    proposal = torch.distributions.MultivariateNormal(v.mean(0), 2.5 * torch.cov(v.T))
    v = proposal.sample((100_000,))
    weights = (model.score_continuous(v.view(-1, 1, 2, 2)).nats - proposal.log_prob(v)).exp()
    mean, variance = mean_and_variance(weights)
    assert variance.sqrt() < 0.01 and abs(mean - 1) < 5 * variance.sqrt()


def test_score_is_a_weight_whose_terms_sum_to_nats_and_reach_every_parameter():
    model = flow((1, 8, 8), 17, multi_scale(2))
    score = model(torch.randint(0, 17, (4, 1, 8, 8), dtype=torch.uint8))
    assert score.kind is Kind.WEIGHT and score.nats.shape == (4,)
    assert list(score.terms) == ["dequantize", "rescale/0", "logdet/0", "split/0", "logdet/1", "base"]
    torch.testing.assert_close(sum(score.terms.values()), score.nats)
    score.nats.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_multi_scale_has_the_stated_parts():
    transforms, shape = MultiScale(3, 5, step(Additive), split)((3, 32, 32))
    assert [type(t) for t in transforms] == [Sequential, Split, Sequential, Split, Sequential]
    assert [len(t.parts) for t in transforms[::2]] == [1 + 3 * 5] * 3
    assert shape == (48, 4, 4)


def test_continuous_data_is_scored_exactly():
    spec = DataSpec((1, 2, 2), None)
    model = Flow(spec, UniformDequantization(None), Rescale(2.0, -0.5), multi_scale(1), LearnedNormal, False)
    x = torch.randn(64, 1, 2, 2)
    initialize(model, x)
    score = model(x)
    assert score.kind is Kind.EXACT and set(score.terms) == {"logdet/0", "base"}
    assert model.sample(5).is_floating_point()
    torch.testing.assert_close(model.decode(model.encode(x)), x, rtol=0, atol=1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_latents_give_back_the_image(levels):
    model = flow((3, 8, 12), levels, multi_scale(2)).float()
    x = torch.randint(0, levels, (6, 3, 8, 12), dtype=torch.uint8)
    latents = model.encode(x)
    assert [tuple(z.shape[1:]) for z in latents] == [(6, 4, 6), (24, 2, 3)]
    assert model.decode(latents).equal(x)
    with pytest.raises(ValueError, match="2 latents; got 1"):
        model.decode(latents[1:])


def steep(slope):
    """24 couplings of a Glow in float32, the least of whose slopes is near ``slope``: a way back multiplies rounding errors."""
    parts = {**step(SigmoidAffine), "coupling": partial(Coupling, conditioner=partial(GlowNet, width=16), scalar_map=SigmoidAffine)}
    model = Flow(DataSpec((3, 8, 8), 256), UniformDequantization(256), None, MultiScale(1, 24, parts, None), LearnedNormal, False)
    for coupling in (part for part in model.modules() if isinstance(part, Coupling)):
        torch.nn.init.normal_(coupling.net.last.conv.weight, std=0.05)
        _, h = coupling.net.last.conv.bias.data.chunk(2)
        h.uniform_(log(slope), 0)
    initialize(model, torch.randint(0, 256, (64, 3, 8, 8)))
    return model.eval()


@torch.no_grad()
def test_steep_couplings_give_back_a_thousandth_of_a_level():
    """What float32 arithmetic loses beyond 1e-3 of a level, float64 arithmetic keeps, of the same weights and float32 latents."""
    model, slopes = steep(0.02), []
    x = torch.randint(0, 256, (16, 3, 8, 8))
    v = (x.double() + 0.5) / 256
    error = lambda back: 256 * float((back - v).abs().max())  # noqa: E731
    for part in model.modules():
        if isinstance(part, SigmoidAffine):
            part.register_forward_hook(lambda part, inputs, output: slopes.append(float(output[1].exp().min())))
    plain = error(model.decode_continuous(model.encode(x)))
    assert len(slopes) == 24 and 0.02 < min(slopes) < 0.04
    latents = model.encode(x, precise=True)
    assert all(z.dtype == torch.float32 for z in latents)
    assert error(model.decode_continuous(latents, precise=True)) < 1e-3 < 2e-3 < plain < 0.5
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert model.decode(latents, precise=True).equal(x.to(torch.uint8))


def test_gradients_of_reals_in_weights_and_latents():
    """They pass the change of precision: those of a float64 copy."""
    model = flow((1, 4, 4), 256, multi_scale(1)).float()
    twin, x = deepcopy(model).double(), torch.randint(0, 256, (3, 1, 4, 4))
    found = []
    for one in (model, twin):
        latents = [z.to(next(one.parameters()).dtype).requires_grad_() for z in model.encode(x)]
        found.append(torch.autograd.grad(one.decode_continuous(latents, precise=True).square().sum(), [*latents, *one.parameters()]))
    assert any(gradient.abs().max() > 1e-2 for gradient in found[0])
    for own, reference in zip(*found, strict=True):
        torch.testing.assert_close(own, reference.float(), rtol=1e-5, atol=1e-6)


def test_latents_are_standard_normal_under_the_model():
    model = flow((1, 4, 4), 256, multi_scale(2))
    n = 5000
    with torch.no_grad():
        v = model.sample_continuous(n)
    model.dequantization.midpoint = lambda _: v
    for residual in model.encode(torch.zeros(n, 1, 4, 4, dtype=torch.long)):
        assert (residual.mean(0).abs() < 5 / n**0.5).all()
        assert ((residual.std(0) - 1).abs() < 5 / (2 * n) ** 0.5).all()


def test_missing_latents_are_drawn_at_the_temperature():
    model = flow((1, 8, 8), 256, multi_scale(2))
    detail, top = model.encode(torch.randint(0, 256, (4, 1, 8, 8)))
    assert model.decode([None, top], temperature=0.0).equal(model.decode([torch.zeros_like(detail), top]))
    assert not model.decode([None, top]).equal(model.decode([None, top]))
    assert model.sample(2, temperature=0.0).equal(model.sample(2, temperature=0.0))


def test_temperature_scales_the_standard_deviation():
    steps = {"actnorm": ActNorm, "conv1x1": Conv1x1}
    model = flow((1, 4, 4), 256, MultiScale(2, 1, steps, split))
    with torch.no_grad():
        model.transforms[2].prior.net.conv.weight.zero_()  # z2 independent of z1: now the whole flow is linear
        hot, cold = (torch.cov(model.sample_continuous(50_000, temperature=t).flatten(1).T) for t in (1.0, 0.5))
    ratio = torch.linalg.solve(hot, cold).diagonal()
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.25), rtol=0.05, atol=0)


def test_samples_are_integers_in_range_and_keep_gradients_before_that():
    model = flow((1, 4, 4), 5, multi_scale(2))
    x = model.sample(50, temperature=3.0)
    assert x.dtype == torch.uint8 and x.shape == (50, 1, 4, 4) and x.max() == 4 and x.min() == 0
    model.sample_continuous(2).sum().backward()
    assert all(p.grad is not None for p in model.base.parameters())


def test_labels_choose_the_base():
    model = flow((1, 4, 4), 5, multi_scale(2), classes=3)
    x = torch.randint(0, 5, (6, 1, 4, 4))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    torch.manual_seed(1)
    right = model(x, y)
    torch.manual_seed(1)
    wrong = model(x, (y + 1) % 3)
    assert (right.terms["base"] != wrong.terms["base"]).all() and right.terms["logdet/1"].equal(wrong.terms["logdet/1"])
    assert model.decode(model.encode(x, y), y).equal(x.to(torch.uint8))
    assert model.sample(6, y).shape == x.shape
    for call in (model, model.encode, lambda x: model.sample(6)):
        with pytest.raises(ValueError, match="labels"):
            call(x)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: flow((1, 28, 28), 2, multi_scale(3)), "at most 2"),
        (lambda: flow((1, 7, 8), 2, multi_scale(1)), "at most 0"),
        (lambda: Flow(DataSpec((1, 2, 2), 3), None, None, multi_scale(1), LearnedNormal, False), "dequantization=uniform"),
        (
            lambda: Flow(DataSpec((1, 2, 2), 3), UniformDequantization(3), None, multi_scale(1), LearnedNormal, True),
            "these data have none",
        ),
        (lambda: flow((1, 2, 2), 3, multi_scale(1))(torch.zeros(1, 1, 2, 2)), "integer data"),
    ],
)
def test_mistakes_are_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message):
        make()
