"""Bijections against autograd, parts against torch and against their closed forms."""

from functools import partial

import pytest
import torch
from torch import distributions as reference

from models.contracts import Kind
from models.nn.data_init import DataInitialized
from models.transforms.actnorm import ActNorm
from models.transforms.conditioners import GlowNet, ZeroConv2d
from models.transforms.conv1x1 import Conv1x1
from models.transforms.coupling import Coupling
from models.transforms.dequantize import UniformDequantization
from models.transforms.maps import Additive, SigmoidAffine
from models.transforms.rescale import Rescale
from models.transforms.sequence import Sequential
from models.transforms.split import ConvNormal, Split
from models.transforms.squeeze import Squeeze
from tests.checks_bijection import check_bijection, log_abs_det_jacobian, randomize

net = partial(GlowNet, width=5)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def initialized(transform, x):
    """``transform`` in float64 with every ActNorm set by x, as models.nn.data_init.initialize does for a model."""
    transform = transform.double()
    waiting = [m for m in transform.modules() if isinstance(m, DataInitialized)]
    for module in waiting:
        module.initializing = True
    with torch.no_grad():
        transform(x)
    for module in waiting:
        module.initializing = False
        module.initialized.fill_(True)
        module._mirror()
    return transform


@pytest.mark.parametrize(
    "make",
    [
        lambda: Rescale(2.0, -1.0),
        lambda: Squeeze(),
        lambda: ActNorm(3),
        lambda: Conv1x1(3),
        lambda: Coupling(3, net, Additive),
        lambda: Coupling(3, net, SigmoidAffine),
        lambda: Sequential([Squeeze(), ActNorm(12), Conv1x1(12), Coupling(12, net, SigmoidAffine), ActNorm(12)]),
    ],
    ids=["rescale", "squeeze", "actnorm", "conv1x1", "additive", "affine", "sequence"],
)
def test_bijection(make):
    x = torch.randn(3, 3, 2, 4, dtype=torch.float64)
    transform = initialized(make(), x)
    randomize(transform)
    check_bijection(transform, x)


@pytest.mark.parametrize("make", [lambda: ActNorm(4), lambda: Conv1x1(4)], ids=["actnorm", "conv1x1"])
def test_bijection_of_vectors(make):
    x = torch.randn(3, 4, dtype=torch.float64)
    transform = initialized(make(), x)
    randomize(transform)
    check_bijection(transform, x)


def test_squeeze_keeps_two_by_two_blocks():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    z, _ = Squeeze()(x)
    assert z.shape == (1, 8, 2, 2)
    assert z[0, :, 0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_actnorm_starts_with_mean_zero_and_variance_one():
    x = 5 + 3 * torch.randn(64, 4, 3, 3, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.1, 7.0]).view(4, 1, 1)
    z, _ = initialized(ActNorm(4), x)(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-10)
    torch.testing.assert_close(z.var((0, 2, 3), correction=0), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-4)


def test_actnorm_looks_at_one_batch_only_and_not_before():
    x = torch.randn(8, 2, 2, 2)
    norm = ActNorm(2)
    for call in (norm, norm.inverse):
        with pytest.raises(RuntimeError, match="initialising batch"):
            call(x)
    norm = initialized(norm, x.double())
    before = norm(x.double())[0]
    norm(100 * x.double())
    torch.testing.assert_close(norm(x.double())[0], before, rtol=0, atol=0)


def test_conv1x1_starts_as_a_rotation():
    z, log_det = Conv1x1(5).double()(torch.eye(5, dtype=torch.float64).view(1, 5, 5))
    torch.testing.assert_close(z[0].T @ z[0], torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(log_det, torch.zeros(1, dtype=torch.float64), rtol=0, atol=1e-5)
    off_diagonal = z[0] - torch.diag(z[0].diagonal())
    assert off_diagonal.abs().max() > 0.3, "a rotation that mixes no channels"


def test_conv1x1_stays_in_full_precision_under_autocast():
    conv, x = Conv1x1(6), torch.randn(2, 6, 4, 4)
    wanted = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = conv(x)
        back = conv.inverse(got[0])
    assert got[0].dtype == torch.float32
    torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scalar_map", [Additive(), SigmoidAffine()])
def test_scalar_maps_against_torch_transforms(scalar_map):
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    params = torch.randn(2, 3 * scalar_map.num_params, 4, dtype=torch.float64)
    shift = params[:, :3]
    scale = torch.ones_like(x) if scalar_map.num_params == 1 else torch.sigmoid(params[:, 3:] + 2)
    wanted = reference.AffineTransform(scale * shift, scale)
    z, log_slope = scalar_map(x, params)
    torch.testing.assert_close(z, wanted(x))
    torch.testing.assert_close(log_slope, wanted.log_abs_det_jacobian(x, z))
    back, back_slope = scalar_map.inverse(z, params)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(back_slope, -log_slope)


def test_log_dets_stay_in_float32_under_autocast():
    coupling = initialized(Coupling(4, net, SigmoidAffine), torch.randn(2, 4, 8, 8, dtype=torch.float64)).float()
    randomize(coupling, 0.05)
    x = torch.randn(2, 4, 8, 8)
    wanted = coupling(x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = coupling(x)
        back, back_det = coupling.inverse_and_log_det(z)
    assert z.dtype == log_det.dtype == back_det.dtype == torch.float32
    torch.testing.assert_close(log_det, wanted, rtol=0.02, atol=0)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
    torch.testing.assert_close(back_det, -log_det, rtol=0, atol=1e-4)


def test_couplings_start_simple():
    x = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    z, log_det = initialized(Coupling(4, net, Additive), x)(x)
    assert z.equal(x) and log_det.eq(0).all()
    z, _ = initialized(Coupling(4, net, SigmoidAffine), x)(x)
    torch.testing.assert_close(z[:, 2:] / x[:, 2:], torch.full_like(x[:, 2:], torch.sigmoid(torch.tensor(2.0)).item()))


def test_zero_conv_starts_at_zero_and_learns():
    conv = ZeroConv2d(2, 3)
    out = conv(torch.randn(1, 2, 4, 4))
    assert out.eq(0).all()
    (out * torch.randn_like(out)).sum().backward()
    assert conv.conv.weight.grad.abs().sum() > 0


def test_dequantization_inverts_and_pays_the_constant():
    x = torch.randint(0, 17, (5, 1, 3, 4))
    transform = UniformDequantization(17)
    z, contribution = transform(x)
    assert transform.kind is Kind.WEIGHT and z.dtype == torch.float32
    assert transform.inverse(z).equal(x.to(torch.uint8))
    assert transform.inverse(transform.midpoint(x)).equal(x.to(torch.uint8))
    _, log_det = log_abs_det_jacobian(lambda v: v / 17, torch.randn(1, 12, dtype=torch.float64))
    torch.testing.assert_close(contribution, log_det.float().expand(5))
    noise = transform.double()(torch.zeros(20000, 1, 1, 1, dtype=torch.long))[0] * 17
    assert noise.dtype == torch.float64 and noise.min() >= 0 and noise.max() < 1
    assert abs(noise.mean() - 0.5) < 5 / (12 * 20000) ** 0.5
    assert transform.inverse(torch.tensor([-3.0, 9.0])).tolist() == [0, 16]


def split(channels=3):
    transform = Split(channels, ConvNormal).double()
    randomize(transform)
    return transform


def test_split_contributes_the_density_of_what_it_drops():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    transform = split()
    a, contribution = transform(x)
    mean, log_scale = transform.prior.net(x[:, :1]).chunk(2, 1)
    assert a.equal(x[:, :1])
    torch.testing.assert_close(contribution, reference.Normal(mean, log_scale.exp()).log_prob(x[:, 1:]).sum((1, 2, 3)))


def test_split_gives_back_what_it_stored_and_redraws_what_it_did_not():
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    transform = split()
    a, residual = transform.encode(x)
    torch.testing.assert_close(transform.decode(a, residual), x, rtol=0, atol=1e-10)
    n = 20000
    prior = transform.prior(a[:1])
    draws = transform.decode(a[:1].expand(n, -1, -1, -1), temperature=0.5)[:, 1:]
    scale = 0.5 * prior.log_scale[0].exp()
    assert ((draws.mean(0) - prior.mean[0]).abs() < 5 * scale / n**0.5).all()
    assert ((draws.std(0) / scale - 1).abs() < 5 / (2 * n) ** 0.5).all()
    redrawn = transform.inverse(a)
    assert redrawn[:, :1].equal(a) and not redrawn.equal(transform.inverse(a))


def test_residuals_are_standard_normal_under_the_split():
    transform, n = split(), 20000
    a = torch.randn(n, 1, 2, 2, dtype=torch.float64)
    _, residual = transform.encode(transform.inverse(a))
    assert (residual.mean(0).abs() < 5 / n**0.5).all() and ((residual.std(0) - 1).abs() < 5 / (2 * n) ** 0.5).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Coupling(1, net, Additive), "two channels"),
        (lambda: Split(1, ConvNormal), "two channels"),
        (lambda: Sequential([Split(2, ConvNormal)]), "Split is none"),
        (lambda: Rescale(0.0, 1.0), "positive"),
    ],
)
def test_mistakes_are_one_clear_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()
