"""Rational-quadratic splines against nflows and zuko, at their edges, and inside couplings and autoregressive steps."""

from functools import partial

import pytest
import torch
import zuko
from checks_bijection import check_bijection, randomize
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import nn

from models.nn.residual import ResidualConv, ResidualMLP
from models.transforms.autoregressive import MaskedAutoregressive
from models.transforms.coupling import Coupling
from models.transforms.lu_linear import LULinear
from models.transforms.splines import RationalQuadratic

BINS, BOUND = 5, 3.0
spline = partial(RationalQuadratic, BINS, BOUND, 1e-3, 1e-3, 1e-3)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def inputs(scale=2.0):
    """Numbers in all bins and in both tails, and rough parameters, [4, 6, 5] and [4, 14 * 6, 5]."""
    return scale * torch.randn(4, 6, 5, dtype=torch.float64), 1.5 * torch.randn(4, 14 * 6, 5, dtype=torch.float64)


def by_number(params):
    """The parameters of each number last: widths and heights [..., K], derivatives [..., K - 1] as others write them."""
    widths, heights, derivatives = params.unflatten(1, (14, -1)).movedim(1, -1).split([BINS, BINS, BINS - 1], -1)
    return widths, heights, derivatives + torch.log(torch.expm1(torch.tensor(1 - 1e-3, dtype=torch.float64)))


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_is_nflows_with_its_gradients(inverse):
    x, params = (t.requires_grad_() for t in inputs())
    weight = torch.randn(2, *x.shape, dtype=torch.float64)
    ours = (spline().inverse if inverse else spline())(x, params)
    theirs = unconstrained_rational_quadratic_spline(x, *by_number(params), inverse=inverse, tail_bound=BOUND)
    for found, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(sum((w * t).sum() for w, t in zip(weight, pair)), (x, params)) for pair in (ours, theirs)]
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-8)


def test_spline_is_zukos_at_the_same_knots():
    x, params = inputs()
    y, log_slope = spline()(x, params)
    theirs = zuko.transforms.MonotonicRQSTransform(*by_number(params), bound=BOUND)
    widths, heights, slopes = (t.movedim(1, -1) for t in spline()._shape(params))
    ends = lambda sizes: torch.cat([torch.zeros_like(sizes[..., :1]), sizes.cumsum(-1)], -1) - BOUND  # noqa: E731
    theirs.horizontal, theirs.vertical, theirs.derivatives = ends(widths), ends(heights), spline()._derivative(slopes)
    wanted, wanted_slope = theirs.call_and_ladj(x)
    torch.testing.assert_close(y, wanted, rtol=0, atol=1e-10)
    torch.testing.assert_close(log_slope, wanted_slope, rtol=0, atol=1e-10)
    torch.testing.assert_close(spline().inverse(y, params)[0], theirs.inv(y), rtol=0, atol=1e-10)


def test_spline_starts_as_the_identity_and_stays_it_outside():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)[None]
    zero = torch.zeros(1, 14 * 101, dtype=torch.float64)
    for function in (spline(), spline().inverse):
        z, log_slope = function(x, zero)
        torch.testing.assert_close(z, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-12)
        z, log_slope = function(x, torch.randn_like(zero))
        outside = x.abs() >= BOUND
        assert z[outside].equal(x[outside]) and log_slope[outside].eq(0).all() and log_slope[~outside].ne(0).all()


@pytest.mark.parametrize("dtype, error", [(torch.float32, 3e-6), (torch.float64, 1e-14)])
def test_spline_inverts_at_knots_ends_and_between(dtype, error):
    """Steep parameters; the points are the knots themselves, both ends, their neighbours and a fine grid.

    What rounding of z allows is an error of x of so much over the slope.
    """
    params = (2 * torch.randn(1, 14, dtype=torch.float64)).to(dtype)
    widths, _, _ = spline()._shape(params)
    knots = widths.flatten().cumsum(0) - BOUND
    x = torch.cat([knots, knots - 1e-6, torch.tensor([-BOUND, BOUND]), torch.linspace(-4, 4, 400)]).to(dtype)[:, None]
    many = params.expand(len(x), -1)
    z, log_slope = spline()(x, many)
    back, _ = spline().inverse(z, many)
    assert ((back - x).abs() * log_slope.exp()).max() < error
    order = x.flatten().argsort()
    assert (z.flatten()[order].diff() >= 0).all()


def test_splines_stay_finite_where_their_parameters_are_extreme():
    x = torch.linspace(-3, 3, 61)[:, None].requires_grad_()
    params = (40 * torch.randn(61, 14)).requires_grad_()
    for function in (spline(), spline().inverse):
        z, log_slope = function(x, params)
        gradients = torch.autograd.grad(z.sum() + log_slope.sum(), (x, params))
        assert all(t.isfinite().all() for t in (z, log_slope, *gradients))


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_has_first_and_second_derivatives(inverse):
    x, params = (t[:1, :, :1].clone().requires_grad_() for t in inputs())
    function = spline().inverse if inverse else spline()
    assert x.abs().min() < BOUND < x.abs().max()
    assert torch.autograd.gradcheck(function, (x, params))
    assert torch.autograd.gradgradcheck(function, (x, params))


def test_spline_gives_the_same_numbers_compiled_batched_and_in_a_batched_backward_pass():
    x, params = (t.requires_grad_() for t in inputs())
    slopes = lambda f: torch.autograd.grad(sum(t.square().sum() for t in f(x, params)), (x, params))  # noqa: E731
    wanted = slopes(spline())
    batched = torch.vmap(lambda a, b: tuple(t[0] for t in spline()(a[None], b[None])))
    for function in (torch.compile(spline(), backend="aot_eager", fullgraph=True), batched):
        for one, other in zip(slopes(function), wanted, strict=True):
            torch.testing.assert_close(one, other)
    z, _ = spline()(x, params)
    basis = torch.eye(z.numel(), dtype=z.dtype)[:7].view(7, *z.shape)
    (rows,) = torch.autograd.grad(z, params, basis, is_grads_batched=True, retain_graph=True)
    for row, direction in zip(rows, basis, strict=True):
        torch.testing.assert_close(row, torch.autograd.grad(z, params, direction, retain_graph=True)[0])


def test_spline_keeps_two_tables_for_its_gradients():
    """The shares of widths and of heights; all else kept is of the size of x."""
    x, params = (t.requires_grad_() for t in inputs())
    tables = {}

    def pack(t):
        if t.shape[1] > 1 and t.numel() >= (BINS - 1) * x.numel():
            tables[t.untyped_storage().data_ptr()] = t.shape
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = spline()(x, params)
    assert kept[0].requires_grad and sorted(tables.values()) == [(4, BINS, 6, 5)] * 2


def residual(in_channels, out_channels):
    return ResidualMLP(in_channels, out_channels, 6, 1, 0.0)


BIJECTIONS = {
    "coupling": lambda: Coupling(5, residual, spline),
    "image coupling": lambda: Coupling(3, lambda a, b: ResidualConv(a, b, 4, 1, 0.0), spline),
    "autoregressive": lambda: MaskedAutoregressive(5, 0, [12], nn.Tanh, spline),
    "linear": lambda: LULinear(5),
}


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijection_law(name):
    transform = BIJECTIONS[name]()
    randomize(transform, 0.3)
    check_bijection(transform, torch.randn(*((2, 3, 2, 2) if name == "image coupling" else (3, 5)), dtype=torch.float64))


def test_linear_is_the_matrix_it_says():
    linear = LULinear(6).double()
    start = linear(torch.eye(6, dtype=torch.float64))[0]
    assert start.sum(0).equal(torch.ones(6).double()) and not start.equal(torch.eye(6).double()), "a permutation at the start"
    randomize(linear, 0.3)
    x = torch.randn(4, 6, dtype=torch.float64)
    lower = torch.eye(6).double() + linear.factors.tril(-1)
    matrix = lower @ (linear.factors.triu(1) + torch.diag(linear.factors.diagonal().exp()))
    z, log_det = linear(x)
    torch.testing.assert_close(z, x[:, linear.order] @ matrix.T)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(matrix).logabsdet.expand(4))


def test_conditioners_start_at_zero_and_learn():
    for net, x in ((ResidualMLP(3, 4, 5, 2, 0.1), torch.randn(2, 3)), (ResidualConv(3, 4, 5, 2, 0.1), torch.randn(2, 3, 4, 4))):
        out = net(x)
        assert out.eq(0).all() and out.shape == (2, 4, *x.shape[2:])
        (out * torch.randn_like(out)).sum().backward()
        assert net.last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((5, 0.0, 1e-3, 1e-3, 1e-3), "positive bound"),
        ((1, 3.0, 1e-3, 1e-3, 1e-3), "2 bins"),
        ((5, 3.0, 0.2, 1e-3, 1e-3), "below 1/5"),
    ],
)
def test_mistakes_are_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        RationalQuadratic(*arguments)
