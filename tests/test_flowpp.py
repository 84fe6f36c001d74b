"""Flow++: its scalar map against scipy, its nets against plain formulas, its sizes against the released code's."""

from functools import partial

import numpy
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy import special, stats

from models.flow.coupling_levels import CouplingLevels
from models.nn.gated_attention import GatedAttention, GatedAttentionNet
from models.transforms.actnorm import ActNorm
from models.transforms.conv1x1 import Conv1x1
from models.transforms.logistic_mixture import LogisticMixture, LogisticMixtureCDF
from models.transforms.stripes import Stripes
from tests.checks_bijection import check_bijection, randomize
from tests.conftest import compose
from tests.test_transforms import initialized

M = 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def mixture(n=4, spread=2.0, dtype=torch.float64):
    """The parameters [1, M, n] of a mixture for each of n numbers."""
    return [scale * torch.randn(1, M, n, dtype=dtype) for scale in (1.0, spread, 1.0)]


def test_the_cdf_is_scipys_into_both_tails():
    x = torch.tensor([[-700.0, -30.0, -1.0, 0.0, 2.0, 30.0, 700.0]], dtype=torch.float64)
    logits, mean, log_scale = parameters = mixture(x.shape[1])
    low, high, density = LogisticMixtureCDF(*parameters).log_probs(x)
    components = stats.logistic(mean.numpy(), log_scale.exp().numpy())
    weights = special.log_softmax(logits.numpy(), 1)
    for found, each in ((low, components.logcdf), (high, components.logsf), (density, components.logpdf)):
        numpy.testing.assert_allclose(found, special.logsumexp(weights + each(x[:, None].numpy()), 1), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("components", [0, 1, 5])
def test_scalar_map_against_autograd_and_its_inverse(components):
    scalar_map = LogisticMixture(components)
    x = (4 * torch.randn(3, 2, 7, dtype=torch.float64)).requires_grad_()
    params = torch.randn(3, 2 * scalar_map.num_params, 7, dtype=torch.float64)
    z, log_slope = scalar_map(x, params)
    (slope,) = torch.autograd.grad(z.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=1e-10, atol=1e-10)
    back, back_slope = scalar_map.inverse(z, params)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(back_slope, -log_slope, rtol=0, atol=1e-12)


def test_scalar_map_of_zeros_is_the_identity():
    x = torch.linspace(-20, 20, 9).view(1, 9)
    for function in (LogisticMixture(4), LogisticMixture(4).inverse):
        z, log_slope = function(x, torch.zeros(1, 9 * 14))
        torch.testing.assert_close(z, x)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-5)


def test_gradients_of_a_quantile_are_those_of_the_implicit_function():
    y = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    parameters = [p.requires_grad_() for p in mixture()]
    assert torch.autograd.gradcheck(lambda y, *p: LogisticMixtureCDF(*p).quantile(y), (y, *parameters), rtol=1e-5)


@pytest.mark.parametrize("dtype, digits", [(torch.float64, 1e-14), (torch.float32, 5e-6)])
def test_a_quantile_is_found_to_its_tolerance(dtype, digits):
    """Of logits to +-50, that is masses down to e^-50 in either tail: x within what the rounding of y leaves open."""
    y = torch.linspace(-50, 50, 101, dtype=dtype).view(-1, 1).expand(-1, 40)
    found = LogisticMixtureCDF(*mixture(40, 3.0, dtype))
    x = found.quantile(y)
    value, log_slope = found.logit(x)
    open_to_rounding = digits * (1 + x.abs() + (1 + y.abs()) / log_slope.exp())
    assert ((value - y).abs() / log_slope.exp() <= open_to_rounding).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_far_and_narrow_components_stay_finite(dtype):
    """Needles of scale e^-7 around -1000 and 1000: between them F is flat in every float."""
    log_scale = torch.full((1, 2, 5), -20.0, dtype=dtype, requires_grad=True)
    mean = torch.tensor([-1000.0, 1000.0], dtype=dtype).view(1, 2, 1).repeat(1, 1, 5).requires_grad_()
    found = LogisticMixtureCDF(torch.zeros_like(mean), mean, log_scale)
    x = found.quantile(torch.tensor([[-30.0, -1.0, 0.0, 1.0, 30.0]], dtype=dtype))
    assert ((x - torch.tensor([-1000.0, -1000.0, 0.0, 1000.0, 1000.0])).abs()[:, [0, 1, 3, 4]] < 0.1).all()
    x.sum().backward()
    assert mean.grad.isfinite().all()
    y, log_slope = found.logit(torch.linspace(-2000, 2000, 5, dtype=dtype).view(1, 5))
    assert y.isfinite().all() and log_slope.isfinite().all()


def test_stripes_are_columns():
    x = torch.arange(12.0).view(1, 1, 2, 6)
    for flip in (False, True):
        seen, moved = Stripes(1, flip).split(x)
        assert (moved if flip else seen).flatten().tolist() == [0, 2, 4, 6, 8, 10]
        assert Stripes(1, flip).join(seen, moved).equal(x)


net = partial(GatedAttentionNet, width=4, num_blocks=1, num_heads=2, dropout=0.2, elu_last=True, context_channels=3)


def test_levels_are_bijections_with_a_context():
    levels = CouplingLevels([[0, 2], [1, 1]], {"norm": ActNorm, "mix": Conv1x1, "none": None}, net, lambda: LogisticMixture(2))
    (sequence,), shape = levels((1, 2, 4))
    assert shape == (4, 1, 2)
    kinds = [type(part).__name__ for part in sequence.parts]
    assert kinds == 2 * ["ActNorm", "Conv1x1", "Coupling"] + ["Squeeze"] + 2 * ["ActNorm", "Conv1x1", "Coupling"]
    for level, size in ((0, (2, 2)), (1, (1, 1))):  # a context has the shape of what a net sees
        parts = [part for part in sequence.parts if type(part).__name__ == "Coupling"][2 * level : 2 * level + 2]
        x = torch.randn(2, 4**level, 2 // (level + 1), 4 // (level + 1), dtype=torch.float64)
        for coupling in parts[1 if level else 0 :]:
            context = torch.randn(2, 3, *size, dtype=torch.float64)
            coupling = initialized(_Given(coupling, context), x).coupling.eval()
            randomize(coupling, 0.3)
            check_bijection(coupling, x, context)


class _Given(torch.nn.Module):
    def __init__(self, coupling, context):
        super().__init__()
        self.coupling, self.context = coupling, context

    def forward(self, x):
        return self.coupling(x, self.context)


@pytest.mark.parametrize(
    "levels, shape, message",
    [
        ([[0, 1], [1, 0]], (1, 7, 8), "allow 0 times: keep 1 levels"),
        ([[0, 1]], (1, 8, 7), "need an even width; on level 0 .* it is 7"),
        ([[1, 0]], (1, 8, 8), "at least two channels"),
    ],
)
def test_impossible_shapes(levels, shape, message):
    with pytest.raises(ValueError, match=message):
        CouplingLevels(levels, {}, net, lambda: LogisticMixture(2))(shape)
    with pytest.raises(ValueError, match="num_heads must divide the width"):
        net(1, 1, (2, 2), width=5)


def test_attention_is_the_plain_formula():
    attention = initialized(_Placed(GatedAttention(6, 2, 0.0)), torch.randn(3, 6, 2, 3, dtype=torch.float64)).attention
    randomize(attention, 0.3)
    h, place = torch.randn(3, 6, 2, 3, dtype=torch.float64), torch.randn(6, 2, 3, dtype=torch.float64)
    q, k, v = attention.project(h + place).flatten(2).view(3, 3, 2, 3, 6).unbind(1)  # [B, heads, d, L]
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(3**0.5).softmax(3)
    a, b = attention.out(torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(3, 6, 2, 3)).chunk(2, 1)
    torch.testing.assert_close(attention(h, place), h + a * torch.sigmoid(b))


class _Placed(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, h):
        return self.attention(h, torch.zeros_like(h[0]))


@pytest.mark.parametrize("num_heads, everywhere", [(2, True), (0, False), (None, False)])
def test_what_a_net_sees(num_heads, everywhere):
    """With attention all positions; without, those within three 3x3 convolutions. Dropout in training only."""
    made = net(1, 2, (9, 9), num_heads=num_heads, context_channels=0)
    made = initialized(made, torch.randn(32, 1, 9, 9, dtype=torch.float64)).eval()
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    (seen,) = torch.autograd.grad(made(x)[0, :, 0, 0].sum(), x)
    reach = torch.zeros(9, 9, dtype=torch.bool)
    reach[:4, :4] = True
    assert seen[0, 0].ne(0).equal(torch.ones_like(reach) if everywhere else reach)
    assert made(x).equal(made(x)) and not made.train()(x).equal(made(x))


@pytest.mark.parametrize(
    "experiment, released, within",
    [
        ("flowpp_cifar10", 31_443_440, 1e-3),
        ("flowpp_cifar10_uniform", 32_324_408, 1e-3),
        ("flowpp_cifar10_affine", 32_045_708, 1e-3),
        ("flowpp_cifar10_pointwise", 31_443_440, 1e-3),
        ("flowpp_imagenet64", 73_489_960, 0.015),
    ],
)
def test_sizes_are_the_released_ones(experiment, released, within):
    """All parameters, the dequantization's included. Ours have one scale a channel, theirs one a position, among others."""
    with torch.device("meta"):
        model = instantiate(OmegaConf.create(compose(f"experiment={experiment}")["model"]), _convert_="all")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(released, rel=within)
