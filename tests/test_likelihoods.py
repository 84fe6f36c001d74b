"""Output heads against enumeration, SciPy's distributions and autograd."""

from itertools import product

import numpy
import pytest
import scipy.stats
import torch

from models.contracts import DataSpec
from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.categorical import Categorical
from models.likelihoods.gaussian import DiscretizedGaussian, Gaussian
from models.likelihoods.logistic import DiscretizedLogistic, MixtureLogistic

LOWEST = -14.0  # below every scale tried here, so that no clamp helps

HEADS = {
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "discretized_logistic": lambda spec: DiscretizedLogistic(spec, min_log_scale=LOWEST),
    "mixture_logistic": lambda spec: MixtureLogistic(spec, num_mixtures=3, min_log_scale=LOWEST),
    "discretized_gaussian": lambda spec: DiscretizedGaussian(spec, min_log_scale=LOWEST),
}
FITS = [(name, levels) for name in HEADS for levels in (2, 3, 17, 256) if name != "bernoulli" or levels == 2]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}
TYPES = [torch.float32, torch.float64]


def colours(channels, levels):
    """Every colour of one pixel: uint8 [K^C, C, 1, 1]."""
    return torch.tensor(list(product(range(levels), repeat=channels)), dtype=torch.uint8)[:, :, None, None]


def probabilities(head, params):
    """P of every colour for parameters [1, P, 1, 1], in float64."""
    x = colours(head.spec.shape[0], head.spec.levels)
    return head.log_prob(params.expand(len(x), -1, 1, 1), x).double().exp()


def scale_head(name, mean, log_scale, dtype, levels):
    """A head with one given location and log scale, C = 1, and its parameters [1, P, 1, 1]."""
    spec = DataSpec((1, 1, 1), levels)
    if name == "mixture_logistic":
        head, values = MixtureLogistic(spec, 1, LOWEST), [0.3, mean, log_scale]
    else:
        head, values = HEADS[name](spec), [mean, log_scale]
    return head, torch.tensor(values, dtype=dtype)[None, :, None, None]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name, levels", FITS)
def test_sums_to_one(name, levels, dtype):
    head = HEADS[name](DataSpec((1, 1, 1), levels))
    torch.manual_seed(0)
    for spread in (0.0, 1.0, 4.0):
        params = spread * torch.randn(1, head.param_channels(), 1, 1, dtype=dtype)
        assert abs(probabilities(head, params).sum() - 1) < TOLERANCE[dtype]


@pytest.mark.parametrize("channels, levels", [(2, 2), (2, 3), (3, 2), (3, 3), (2, 17)])
@pytest.mark.parametrize("name", HEADS)
def test_sums_to_one_over_colours(name, channels, levels):
    if name == "bernoulli" and levels != 2:
        return
    head = HEADS[name](DataSpec((channels, 1, 1), levels))
    torch.manual_seed(1)
    params = 2 * torch.randn(1, head.param_channels(), 1, 1, dtype=torch.float64)
    assert abs(probabilities(head, params).sum() - 1) < 1e-11


EXTREMES = list(product((0.0, -1.0, 0.37, 1.0, 3.0, -40.0, 1000.0), (-12.0, -7.0, -5.5, -2.0, 0.0, 3.0, 7.0)))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize("name", ["discretized_logistic", "mixture_logistic", "discretized_gaussian"])
def test_extreme_parameters(name, levels, dtype):
    """Sums to 1 with finite log-probabilities and gradients, however far the location and whatever the scale."""
    for mean, log_scale in EXTREMES:
        head, params = scale_head(name, mean, log_scale, dtype, levels)
        params.requires_grad_()
        x = torch.arange(levels, dtype=torch.uint8)[:, None, None, None]
        log_prob = head.log_prob(params.expand(levels, -1, 1, 1), x)
        (gradient,) = torch.autograd.grad(log_prob.sum(), params)
        assert log_prob.dtype == dtype and log_prob.isfinite().all() and gradient.isfinite().all(), (mean, log_scale)
        assert (log_prob <= 0).all()
        assert abs(log_prob.detach().double().exp().sum() - 1) < TOLERANCE[dtype], (mean, log_scale)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_extreme_logits(name):
    head = HEADS[name](DataSpec((1, 1, 1), 2))
    params = torch.tensor([1e4, -1e4][: head.param_channels()])[None, :, None, None].requires_grad_()
    total = probabilities(head, params)
    log_prob = head.log_prob(params.expand(2, -1, 1, 1), colours(1, 2))
    (gradient,) = torch.autograd.grad(log_prob.sum(), params)
    assert log_prob.isfinite().all() and gradient.isfinite().all() and abs(total.sum() - 1) < 1e-6


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
@pytest.mark.parametrize(
    "name, reference",
    [
        ("discretized_logistic", scipy.stats.logistic),
        ("mixture_logistic", scipy.stats.logistic),
        ("discretized_gaussian", scipy.stats.norm),
    ],
)
def test_matches_scipy(name, reference, levels, dtype):
    """Each bin against a difference of SciPy's float64 CDFs, where that difference is itself accurate."""
    for mean, log_scale in [(0.0, 0.0), (-0.4, -1.0), (0.9, -3.0), (-1.5, 0.5), (0.2, -6.0), (0.5, 5.0)]:
        head, params = scale_head(name, mean, log_scale, dtype, levels)
        ours = probabilities(head, params).numpy()
        half = (levels - 1) / 2
        edges = numpy.concatenate([[-numpy.inf], numpy.arange(levels - 1) + 0.5, [numpy.inf]]) / half - 1
        cdf = reference.cdf(edges, loc=mean, scale=numpy.exp(log_scale))
        survival = reference.sf(edges, loc=mean, scale=numpy.exp(log_scale))
        expected = numpy.where(edges[:-1] > mean, survival[:-1] - survival[1:], cdf[1:] - cdf[:-1])
        relative, absolute = (1e-4, 1e-7) if dtype == torch.float32 else (1e-9, 1e-14)
        numpy.testing.assert_allclose(ours, expected, rtol=relative, atol=absolute)


def test_mixture_against_its_equations():
    """C = 3 with coupling, component by component in NumPy and SciPy (Salimans et al. 2017, eq. 1 to 3)."""
    levels, mixtures = 5, 2
    head = MixtureLogistic(DataSpec((3, 1, 1), levels), mixtures, LOWEST)
    torch.manual_seed(2)
    params = torch.randn(1, head.param_channels(), 1, 1, dtype=torch.float64)
    blocks = params.view(mixtures, 10).numpy()
    weights = scipy.special.softmax(blocks[:, 0])
    edges = numpy.concatenate([[-numpy.inf], numpy.arange(levels - 1) + 0.5, [numpy.inf]]) * 2 / (levels - 1) - 1

    def bin_mass(k, mean, log_scale):
        return numpy.diff(scipy.stats.logistic.cdf(edges[[k, k + 1]], mean, numpy.exp(log_scale)))[0]

    expected = []
    for red, green, blue in product(range(levels), repeat=3):
        r, g = 2 * red / (levels - 1) - 1, 2 * green / (levels - 1) - 1
        total = 0.0
        for weight, b in zip(weights, blocks, strict=True):
            alpha, beta, gamma = numpy.tanh(b[7:])
            total += (
                weight
                * bin_mass(red, b[1], b[4])
                * bin_mass(green, b[2] + alpha * r, b[5])
                * bin_mass(blue, b[3] + beta * r + gamma * g, b[6])
            )
        expected.append(total)
    numpy.testing.assert_allclose(probabilities(head, params).numpy(), expected, rtol=1e-9)


def test_continuous_gaussian_matches_torch():
    head = Gaussian(DataSpec((2, 1, 2), None), min_log_scale=-7.0)
    torch.manual_seed(3)
    params, x = torch.randn(5, 4, 1, 2, dtype=torch.float64), torch.randn(5, 2, 1, 2, dtype=torch.float64)
    normal = torch.distributions.Normal(params[:, ::2], params[:, 1::2].exp())
    torch.testing.assert_close(head.log_prob(params, x), normal.log_prob(x).sum((1, 2, 3)))
    torch.testing.assert_close(head.mean(params), params[:, ::2])
    draws = head.sample(params[:1].expand(20000, -1, 1, 2))
    torch.testing.assert_close(draws.mean(0), params[0, ::2], atol=0.15, rtol=0)
    torch.testing.assert_close(draws.std(0), params[0, 1::2].exp(), atol=0, rtol=0.05)


@pytest.mark.parametrize("name, levels", FITS)
def test_mean_is_the_enumerated_mean(name, levels):
    head = HEADS[name](DataSpec((1, 1, 1), levels))
    torch.manual_seed(4)
    params = torch.randn(1, head.param_channels(), 1, 1, dtype=torch.float64)
    expected = (probabilities(head, params) * torch.arange(levels)).sum()
    torch.testing.assert_close(head.mean(params).squeeze(), expected)


def test_mixture_mean_over_channels():
    """Exact without coupling; with it, close to the enumerated mean while the mass lies inside the range."""
    head = MixtureLogistic(DataSpec((3, 1, 1), 9), 2, LOWEST)
    torch.manual_seed(5)
    blocks = 0.3 * torch.randn(1, 2, 10, 1, 1, dtype=torch.float64)
    blocks[:, :, 4:7] -= 3.0
    x = colours(3, 9).double().flatten(1)
    for coupling, tolerance in ((0.0, 1e-9), (0.5, 0.05)):
        blocks[:, :, 7:] = coupling
        params = blocks.flatten(1, 2)
        expected = probabilities(head, params) @ x
        torch.testing.assert_close(head.mean(params).flatten(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("channels, levels", [(1, 2), (1, 17), (2, 3), (3, 2)])
@pytest.mark.parametrize("name", HEADS)
def test_samples_follow_the_probabilities(name, channels, levels):
    if name == "bernoulli" and levels != 2:
        return
    head = HEADS[name](DataSpec((channels, 1, 1), levels))
    torch.manual_seed(6)
    params = torch.randn(1, head.param_channels(), 1, 1, dtype=torch.float64)
    draws = head.sample(params.expand(20000, -1, 1, 1))
    assert draws.dtype == torch.uint8 and draws.shape == (20000, channels, 1, 1)
    index = (draws.long().flatten(1) * levels ** torch.arange(channels - 1, -1, -1)).sum(1)
    observed = torch.bincount(index, minlength=levels**channels).numpy()
    expected = probabilities(head, params).numpy() * 20000
    rare = expected < 5
    observed = numpy.append(observed[~rare], observed[rare].sum())
    expected = numpy.append(expected[~rare], max(expected[rare].sum(), 1e-9))
    statistic = ((observed - expected) ** 2 / expected)[expected > 1].sum()
    assert statistic < scipy.stats.chi2.ppf(1 - 1e-6, max(len(observed) - 1, 1))


@pytest.mark.parametrize("name", HEADS)
def test_temperature_zero_is_deterministic_and_low_is_sharper(name):
    head = HEADS[name](DataSpec((1, 4, 4), 2))
    torch.manual_seed(7)
    params = torch.randn(1, head.param_channels(), 4, 4).expand(500, -1, 4, 4)
    assert torch.equal(head.sample(params, 0.0), head.sample(params, 0.0))
    assert head.sample(params, 0.3).float().var(0).mean() < head.sample(params, 1.0).float().var(0).mean()


@pytest.mark.parametrize("name, levels", FITS)
def test_image_is_a_sum_of_pixels(name, levels):
    """Layout: an image's score is the sum over its pixels scored alone, and half-precision parameters are accepted."""
    head = HEADS[name](DataSpec((2, 3, 2), levels))
    torch.manual_seed(8)
    params = torch.randn(2, head.param_channels(), 3, 2)
    x = torch.randint(levels, (2, 2, 3, 2)).to(torch.uint8)
    alone = sum(
        head.log_prob(params[:, :, i : i + 1, j : j + 1], x[:, :, i : i + 1, j : j + 1]) for i in range(3) for j in range(2)
    )
    torch.testing.assert_close(head.log_prob(params, x), alone)
    assert head.log_prob(params.bfloat16(), x).dtype == torch.float32
    assert head.mean(params).shape == head.sample(params).shape == (2, 2, 3, 2)


@pytest.mark.parametrize("name, levels", [("bernoulli", 2)] + [(name, 5) for name in HEADS if name != "bernoulli"])
def test_gradient_is_the_derivative(name, levels):
    head = HEADS[name](DataSpec((3, 1, 2), levels))
    torch.manual_seed(9)
    params = torch.randn(3, head.param_channels(), 1, 2, dtype=torch.float64, requires_grad=True)
    x = torch.stack([torch.zeros(3, 1, 2), torch.full((3, 1, 2), levels - 1), torch.full((3, 1, 2), levels // 2)]).long()
    assert torch.autograd.gradcheck(lambda p: head.log_prob(p, x), params)


def test_impossible_choices_say_what_fits():
    with pytest.raises(ValueError, match="choose likelihood=categorical"):
        Bernoulli(DataSpec((1, 8, 8), 17))
    for head in HEADS.values():
        with pytest.raises(ValueError, match="choose likelihood=gaussian"):
            head(DataSpec((1, 1, 2), None))
    with pytest.raises(ValueError, match="discretized_gaussian"):
        Gaussian(DataSpec((1, 8, 8), 17), min_log_scale=-7.0)
