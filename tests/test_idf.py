"""Integer flows: bijections of integers, their exact probabilities, and their code."""

from functools import partial
from itertools import product
from math import log

import numpy
import pytest
import torch
from scipy.special import softmax
from scipy.stats import logistic

from models.coding.coder import Decoder, Encoder, code_images
from models.contracts import DataSpec, Kind
from models.distributions.discretized import ConditionalMixture, DiscretizedMixture, LearnedMixture
from models.flow.idf import IntegerFlow
from models.flow.multiscale import MultiScale
from models.transforms.coupling import Coupling
from models.transforms.densenet import DenseNet
from models.transforms.integer import MAX_SHIFT, Grid, IntegerShift, LastQuarter, grid_step
from models.transforms.permutation import Permutation
from models.transforms.sequence import Sequential
from models.transforms.split import Split
from models.transforms.squeeze import Squeeze
from tests.checks_bijection import check_bijection, randomize

NET = partial(DenseNet, width=6, depth=2)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def step(levels):
    coupling = partial(Coupling, conditioner=NET, scalar_map=partial(IntegerShift, levels), partition=LastQuarter)
    return {"permutation": Permutation, "coupling": coupling}


def split(levels):
    return partial(Split, prior=partial(ConditionalMixture, conditioner=NET, components=2, levels=levels))


def multi_scale(levels, num_levels):
    return MultiScale(num_levels, 2, step(levels), split(levels))


def split_without_squeeze(levels):
    """A split inside a 1x2x2 image, small enough to enumerate: [1, 2, 2] -> [4, 1, 1] -> [2, 1, 1]."""

    def architecture(shape):
        first = [make(4) for make in step(levels).values()]
        return [Sequential([Squeeze(), *first]), split(levels)(4), Sequential([Permutation(2)])], (2, 1, 1)

    return architecture


def flow(shape, levels, architecture, scatter=0.2):
    model = IntegerFlow(DataSpec(shape, levels), architecture, partial(LearnedMixture, components=3, levels=levels))
    randomize(model, scatter)
    return model.eval()


# --- the grid and its bijections --------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels, step", [(2, 1 / 2), (3, 1 / 4), (17, 1 / 32), (128, 1 / 128), (129, 1 / 256), (256, 1 / 256)])
def test_the_grid_holds_every_integer_exactly(levels, step):
    grid = Grid(levels)
    x = torch.tensor([-(2**23), -levels, -1, *range(levels), levels, 2**23 - 1, 2**24 - levels])[:, None]
    z, contribution = grid(x)
    assert z.dtype == torch.float32 and contribution.equal(torch.zeros(len(x)))
    assert [float(v) for v in z] == [(int(v) - levels // 2) * step for v in x]
    assert -0.5 <= z[3] and z[2 + levels] < 0.5
    assert grid.integers(z).equal(x)
    assert grid.inverse(z).equal(x.clamp(0, levels - 1).to(torch.uint8))


@pytest.mark.parametrize("scatter", [0.2, 3.0, 1e4])
@pytest.mark.parametrize("levels, size", [(17, 40), (256, 2**22)])
def test_integers_come_back_exactly_in_float32(levels, size, scatter):
    """Negative and large ones, and with translations of any length: the last are cut off, or 2^24 would be passed."""
    transforms, _ = multi_scale(levels, 1)((3, 8, 8))
    stage = transforms[0]
    randomize(stage, scatter)
    grid = Grid(levels)
    x = torch.randint(-size, size, (9, 3, 8, 8))
    z, log_det = stage(grid(x)[0])
    assert grid.integers(z).to(z.dtype).mul(grid.step).sub(levels // 2 * grid.step).equal(z), "z left the grid"
    back, back_det = stage.inverse_and_log_det(z)
    assert grid.integers(back).equal(x) and not log_det.any() and not back_det.any()
    moved = (stage.parts[2](grid(torch.cat([x] * 4, 1)[:, :, ::2, ::2])[0])[0][:, 9:] - grid(x)[0][:, :, ::2, ::2]).abs()
    assert moved.max() > 0 and (scatter < 1e4 or moved.max() == MAX_SHIFT * grid.step)


def test_a_translation_is_the_nearest_integer_and_its_gradient_passes():
    shift = torch.tensor([[-0.9, -0.26, -0.24, 0.0, 0.24, 0.26, 0.74, 0.9]], requires_grad=True)
    x = torch.full((1, 8), 1.5, requires_grad=True)
    one = IntegerShift(levels=2)
    z, log_slope = one(x, shift)
    assert z.tolist() == [[0.5, 1.0, 1.5, 1.5, 1.5, 2.0, 2.0, 2.5]] and not log_slope.any()
    weight = torch.randn(1, 8)
    gradients = torch.autograd.grad((weight * z).sum(), [x, shift])
    assert gradients[0].equal(weight) and gradients[1].equal(weight)
    back, _ = one.inverse(z.detach(), shift)
    assert back.equal(x)
    assert torch.autograd.grad((weight * back).sum(), shift)[0].equal(-weight)


@pytest.mark.parametrize("channels", [4, 6])
def test_the_coupling_and_permutation_keep_the_law_of_bijections(channels):
    """With the coupling's Jacobian that of the map before rounding, which is volume preserving too."""
    for make in step(256).values():
        part = make(channels)
        randomize(part, 0.2)
        check_bijection(part, Grid(256)(torch.randint(256, (2, channels, 2, 3)))[0].double())


def test_only_the_last_quarter_moves():
    for channels, moved in ((4, 1), (6, 1), (12, 3)):
        coupling = step(256)["coupling"](channels)
        randomize(coupling, 1.0)
        x = Grid(256)(torch.randint(256, (3, channels, 4, 4)))[0]
        changed = (coupling(x)[0] != x).any(3).any(2).any(0)
        assert changed.tolist() == [False] * (channels - moved) + [True] * moved


def test_the_dense_net_has_the_papers_sizes():
    """Of the released code at 512 channels and depth 12: 42 or 43 more channels a layer, each seen by a 1x1 convolution."""
    with torch.device("meta"):
        net = DenseNet(9, 3, width=512, depth=12)
    sizes = [layer.conv2.out_channels for layer in net.layers]
    assert sum(sizes) == 512 and set(sizes) == {42, 43} and len(sizes) == 12
    assert [layer.conv1.weight.shape[:2] for layer in net.layers][5] == (9 + sum(sizes[:5]),) * 2
    assert net.last.weight.shape == (3, 521, 3, 3)


# --- the prior --------------------------------------------------------------------------------------------------------


def mixture(dtype=torch.float64):
    """Components narrow and wide, near and far, [1, 4, 2, 3], and their numbers in steps."""
    logits, mean = torch.randn(1, 4, 2, 3, dtype=dtype), torch.randn(1, 4, 2, 3, dtype=dtype)
    log_scale = torch.linspace(-5, 1, 24, dtype=dtype)[torch.randperm(24)].view(1, 4, 2, 3)
    return DiscretizedMixture(logits, mean, log_scale, 1 / 32), [t.numpy() for t in (logits, 32 * mean, 32 * log_scale.exp())]


def by_scipy(logits, mean, scale, k):
    """P(k) [n, 2, 3] of integers k [n, 1, 1], from the side on which scipy's difference loses no digits."""
    low, high = (k[:, None] - 0.5 - mean) / scale, (k[:, None] + 0.5 - mean) / scale
    masses = numpy.where(low < 0, logistic.cdf(high) - logistic.cdf(low), logistic.sf(low) - logistic.sf(high))
    return (softmax(logits, 1) * masses).sum(1)


@pytest.mark.parametrize("dtype, rtol, atol", [(torch.float64, 1e-8, 1e-14), (torch.float32, 1e-3, 1e-6)])
def test_masses_are_scipys_and_sum_to_one_over_the_integers(dtype, rtol, atol):
    prior, numbers = mixture(dtype)
    k = numpy.arange(-4000, 4001)[:, None, None]
    z = torch.from_numpy(k / 32).to(dtype).expand(-1, 2, 3)
    masses = prior.log_prob_map(z).exp().double()
    torch.testing.assert_close(masses, torch.from_numpy(by_scipy(*numbers, k)), rtol=rtol, atol=atol)
    torch.testing.assert_close(masses.sum(0), torch.ones(2, 3, dtype=torch.float64), rtol=0, atol=max(rtol / 100, 1e-9))
    torch.testing.assert_close(prior.log_prob(z), prior.log_prob_map(z).sum((1, 2)))


def test_far_tails_are_those_of_the_widest_component():
    """Where every CDF is 1 to the last digit: log P(k) = log w - (k - mean) / scale, and finite gradients."""
    mean = torch.zeros(1, 2, 1, 1, 1, requires_grad=True)
    log_scale = torch.tensor([-3.0, 0.0]).view(1, 2, 1, 1, 1)
    for k in (60.0, -60.0):
        nats = DiscretizedMixture(torch.zeros(1, 2, 1, 1, 1), mean, log_scale, 1 / 256).log_prob(torch.full((1, 1, 1, 1), k))
        assert nats.item() == pytest.approx(log(0.5) - 60 - log(256), rel=1e-6)
        assert torch.autograd.grad(nats.sum(), mean)[0].flatten()[1].item() == pytest.approx(k / 60, rel=1e-5)


def test_draws_have_these_masses_and_latents_are_integers():
    prior, numbers = mixture()
    n = 40_000
    z = prior.rsample(n)
    k = (z * 32).round()
    assert k.equal(z * 32) and prior.standardize(z) is z and prior.place(z + 0.4 / 32).equal(z)
    for low, high in ((-5, 5), (0, 1), (20, 60)):
        expected = torch.from_numpy(sum(by_scipy(*numbers, numpy.full((1, 1, 1), i)) for i in range(low, high))[0])
        found = ((k >= low) & (k < high)).double().mean(0)
        assert ((found - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1e-4).all()
    assert (prior.rsample(500, temperature=1e-9).sub(z[:500]).abs() <= prior.rsample(500).abs().max() * 2).all()


# --- the flow ---------------------------------------------------------------------------------------------------------

ARCHITECTURES = {"one level": partial(multi_scale, 3, 1), "split": partial(split_without_squeeze, 3)}


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_probabilities_sum_to_one_over_all_integers_and_draws_have_them(name):
    model = flow((1, 2, 2), 3, ARCHITECTURES[name]()).double()
    model.base.log_scale -= 1.0
    span = torch.arange(-9, 12)
    every = torch.cartesian_prod(span, span, span, span).view(-1, 1, 2, 2)
    assert 0.9999 < sum(model(x).nats.exp().sum() for x in every.split(9261)) <= 1 + 1e-9

    images = torch.tensor(list(product(range(3), repeat=4))).view(81, 1, 2, 2)
    score = model(images)
    assert score.kind is Kind.EXACT
    n = 50_000
    x = model.sample_integers(n).flatten(1)
    inside = ((x >= 0) & (x < 3)).all(1)
    frequency = torch.bincount((x[inside] * torch.tensor([27, 9, 3, 1])).sum(1), minlength=81) / n
    p = score.nats.exp()
    assert 0.02 < p.sum() < 0.98
    assert ((p - frequency).abs() < 5 * (torch.maximum(p, frequency) / n).sqrt()).all()
    assert abs(p.sum() - inside.double().mean()) < 5 * (p.sum() * (1 - p.sum()) / n).sqrt()


def test_terms_latents_and_gradients():
    model = flow((4, 8, 8), 17, multi_scale(17, 2), scatter=0.1)
    x = torch.randint(0, 17, (4, 4, 8, 8), dtype=torch.uint8)
    score = model(x)
    assert list(score.terms) == ["grid", "logdet/0", "split/0", "logdet/1", "base"]
    torch.testing.assert_close(score.terms["split/0"] + score.terms["base"], score.nats)
    score.nats.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    rest, top = model.encode(x)
    assert rest.shape == (4, 8, 4, 4) and top.shape == (4, 32, 2, 2)
    assert (32 * torch.cat([rest.flatten(), top.flatten()]) % 1 == 0).all()
    assert model.decode([rest, top]).equal(x)
    samples = model.sample(30, temperature=3.0)
    assert samples.dtype == torch.uint8 and samples.max() == 16 and samples.min() == 0


def test_mistakes_are_one_clear_line():
    for make, message in [
        (lambda: flow((1, 8, 8), None, multi_scale(3, 1)), "these data are continuous"),
        (lambda: flow((1, 28, 28), 2, multi_scale(2, 3)), "at most 2"),
        (lambda: LastQuarter(3), "at least four"),
        (lambda: DenseNet(3, 1, width=2, depth=3), "at least depth"),
        (lambda: LearnedMixture((1,), 0, 256), "at least one component"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


# --- the code ---------------------------------------------------------------------------------------------------------


def coded(model, x) -> bytes:
    """The bits of images; asserts that they come back, in batches of 5."""
    encoder, before = Encoder(), x.clone()
    code_images(model, encoder, x, None, 5)
    assert x.equal(before)
    code_images(model, Decoder(encoder.content), decoded := torch.zeros_like(x), None, 5)
    assert decoded.equal(before)
    return encoder.content


@pytest.mark.parametrize("shape, levels, num_levels", [((1, 8, 8), 17, 2), ((3, 8, 12), 256, 2), ((1, 4, 2), 2, 1)])
def test_images_come_back_at_the_cost_of_their_score(shape, levels, num_levels):
    model = flow(shape, levels, multi_scale(levels, num_levels), scatter=0.05)  # no value is so rare that it costs 24 bits
    x = torch.randint(0, levels, (7, *shape), dtype=torch.uint8)
    bits = -model(x).nats.double().sum().item() / log(2)
    assert -32 <= 8 * len(coded(model, x)) - bits <= 1e-4 * bits + 64


def test_integers_far_from_their_prior_are_coded_too():
    """Under a prior that is sure of something else; each of their digits then costs at most 24 bits."""
    model = flow((1, 8, 8), 256, multi_scale(256, 2), scatter=5.0)
    with torch.no_grad():
        model.base.log_scale.fill_(-30.0)
    x = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert max(z.abs().max() for z in model.encode(x)) > 30
    coded(model, x)


def test_the_digits_of_any_integer_cost_its_probability():
    mean = torch.randn(2, 2, 2, 1, 4, dtype=torch.float64)
    log_scale = torch.tensor([-2.0, 7.0]).view(1, 2, 1, 1, 1).expand(1, 2, 2, 1, 4)
    prior = DiscretizedMixture(torch.zeros_like(mean), mean, log_scale.double(), 1 / 256)
    k = torch.tensor([0, -1, 1, 255, -4096, 2**16, 2**24 - 1, -(2**24), 5, 6, -7, -8, 100, 2**20, 3, 2**22]).view(2, 2, 1, 4)
    z, written = k.double() / 256, []
    for digits, log_pmf in prior.code(z.clone()):
        written.append((digits, log_pmf.gather(1, digits[:, None]).view(k.shape)))
    torch.testing.assert_close(sum(nats for _, nats in written).sum((1, 2, 3)), prior.log_prob(z), rtol=0, atol=1e-7)
    read = torch.full_like(z, 99.0)
    for (digits, log_pmf), (right, nats) in zip(prior.code(read), written, strict=True):
        digits.copy_(right)
        assert log_pmf.gather(1, right[:, None]).view(k.shape).equal(nats)
    assert read.equal(z)
