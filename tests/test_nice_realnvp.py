"""NICE and RealNVP: partitions, logit, logistic base, scales, and round trips, against autograd, SciPy and torch."""

from __future__ import annotations

from functools import partial

import numpy
import pytest
import torch
from scipy import stats
from torch import distributions as reference

from models.build import ConfigError
from models.contracts import DataSpec, Kind
from models.distributions.bases import LearnedNormal, StandardNormal
from models.distributions.logistic import DiagonalLogistic, StandardLogistic
from models.evaluators.round_trip import RoundTrip
from models.flow.flat import Flat
from models.flow.flow import Flow
from models.flow.realnvp import DiagonalsFirst, RealNVPScales
from models.nn.data_init import initialize
from models.transforms.actnorm import ActNorm
from models.transforms.scaling import Scaling
from models.transforms.conditioners import MLP, ResNet
from models.transforms.coupling import Coupling
from models.transforms.dequantize import UniformDequantization
from models.transforms.flatten import Flatten
from models.transforms.logit import Logit
from models.transforms.maps import Additive, SigmoidAffine, TanhAffine
from models.transforms.partitions import ChannelHalves, Checkerboard, OddEven
from models.transforms.sequence import Sequential
from models.transforms.split import Split, UnitNormal
from models.transforms.squeeze import Squeeze
from tests.checks_bijection import check_bijection, randomize
from tests.conftest import build_model, compose, shaped
from tests.laws import random_batch, ready
from tests.test_evaluators import Table, by_metric, context
from tests.test_transforms import initialized


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# --- partitions ------------------------------------------------------------------------------------------------------

FLIP = pytest.mark.parametrize("flip", [False, True])
IMAGES = [(3, 2, 4), (2, 3, 3), (1, 3, 2), (1, 1, 5), (1, 4, 1), (1, 2, 2)]


@FLIP
@pytest.mark.parametrize("scalar_map", [Additive, SigmoidAffine, TanhAffine])
@pytest.mark.parametrize(
    "kind, conditioner, shape",
    [(Checkerboard, partial(ResNet, width=4, num_blocks=1), shape) for shape in IMAGES]
    + [(ChannelHalves, partial(ResNet, width=4, num_blocks=1), (channels, 2, 3)) for channels in (2, 3)]
    + [(OddEven, partial(MLP, hidden=[6]), (dim,)) for dim in (2, 5, 6)],
)
def test_couplings_over_every_partition(kind, conditioner, shape, scalar_map, flip):
    x = torch.randn(2, *shape, dtype=torch.float64)
    coupling = initialized(Coupling(shape[0], conditioner, scalar_map, partial(kind, flip=flip)), x)
    randomize(coupling, 0.3)
    check_bijection(coupling, x)


def seen_and_moved(partition, x):
    """Which elements of x the net sees, and which move, found from the values alone."""
    seen, moving = partition.split(x)
    find = lambda part: torch.isin(x, part[part != 0])
    return find(seen), find(moving)


@FLIP
@pytest.mark.parametrize("kind, shape", [(Checkerboard, s) for s in IMAGES] + [(ChannelHalves, (3, 2, 2)), (OddEven, (5,))])
def test_a_partition_splits_in_two_and_joins_again(kind, shape, flip):
    x = torch.randn(2, *shape)
    partition = kind(shape[0], flip=flip)
    seen, moving = partition.split(x)
    assert partition.join(seen, moving).equal(x)
    first, second = seen_and_moved(partition, x)
    assert (first ^ second).all(), "every element is seen or moves"
    assert first.equal(seen_and_moved(kind(shape[0], flip=not flip), x)[1])
    assert (seen.shape[1], moving.shape[1]) == (partition.seen_channels, partition.moved_channels)


def test_partitions_are_those_of_the_papers():
    x = 1.0 + torch.arange(12).view(1, 1, 3, 4)
    assert Checkerboard(1).split(x)[0].tolist() == [[[[1, 0, 3, 0], [0, 6, 0, 8], [9, 0, 11, 0]]]]
    assert Checkerboard(1).split(x)[1].tolist() == [[[2, 4, 5, 7, 10, 12]]]
    assert Checkerboard(1, flip=True).split(x[..., :3])[1].tolist() == [[[1, 3, 6, 9, 11]]]
    seen, moving = OddEven(5).split(torch.arange(1, 6).view(1, 5))
    assert seen.tolist() == [[1, 3, 5]] and moving.tolist() == [[2, 4]]


@FLIP
def test_a_pixel_moves_by_its_own_parameters_and_never_sees_itself(flip):
    """Against RealNVP's eq. 9: z = b x + (1 - b) (x exp(s(b x)) + t(b x))."""
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    net = partial(ResNet, width=4, num_blocks=1)
    coupling = initialized(Coupling(2, net, TanhAffine, partial(Checkerboard, flip=flip)), x)
    randomize(coupling, 0.3)
    b = ((torch.arange(3)[:, None] + torch.arange(4)) % 2 == int(flip)).double()
    t, h = coupling.net(b * x).chunk(2, 1)
    s = coupling.scalar_map.scale * torch.tanh(h)
    z, log_det = coupling(x)
    torch.testing.assert_close(z, b * x + (1 - b) * (x * s.exp() + t))
    torch.testing.assert_close(log_det, ((1 - b) * s).sum((1, 2, 3)))


# --- other parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make, shape", [(lambda: Logit(0.05), (2, 3)), (lambda: DiagonalsFirst(8), (8, 2, 1))])
def test_bijections(make, shape):
    check_bijection(make(), torch.rand(3, *shape, dtype=torch.float64))
    check_bijection(Flatten(shape), torch.rand(3, *shape, dtype=torch.float64))


def test_logit_against_torch_transforms():
    alpha, x = 0.05, torch.rand(4, 3, 2, dtype=torch.float64)
    affine = reference.AffineTransform(alpha, 1 - 2 * alpha)
    wanted = reference.ComposeTransform([affine, reference.SigmoidTransform().inv])
    z, log_det = Logit(alpha)(x)
    torch.testing.assert_close(z, wanted(x))
    torch.testing.assert_close(log_det, wanted.log_abs_det_jacobian(x, wanted(x)).sum((1, 2)))
    edges = Logit(alpha)(torch.tensor([[0.0, 1.0]]))[0]
    assert edges.isfinite().all() and torch.allclose(edges[0, 0], -edges[0, 1])


def test_logistic_against_scipy():
    location, log_scale = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    z = 30 * torch.randn(2, 3, dtype=torch.float64)
    wanted = stats.logistic.logpdf(z.numpy(), location.numpy(), log_scale.exp().numpy()).sum(1)
    logistic = DiagonalLogistic(location, log_scale)
    numpy.testing.assert_allclose(logistic.log_prob(z), wanted, rtol=1e-10)
    torch.testing.assert_close(logistic.place(logistic.standardize(z)), z)
    base = StandardLogistic([3])(None)
    for temperature in (1.0, 0.5):
        draws = base.rsample(4000, temperature)
        assert draws.shape == (4000, 3) and stats.kstest(draws.flatten() / temperature, "logistic").pvalue > 1e-3
    numpy.testing.assert_allclose(base.log_prob(draws), stats.logistic.logpdf(draws.numpy()).sum(1), rtol=1e-5)
    assert base.log_prob(torch.full((1, 3), 200.0)).item() == -600.0


def test_diagonals_first():
    """Two 2x2 blocks of two channels: what a split keeps is the diagonal of both."""
    x = torch.arange(16.0).view(1, 2, 2, 4)
    z, _ = DiagonalsFirst(8)(Squeeze()(x)[0])
    assert sorted(z[0, :4].flatten().tolist()) == [0, 2, 5, 7, 8, 10, 13, 15]
    assert sorted(z[0, :2].flatten().tolist()) == [0, 2, 8, 10]


def test_unit_normal_contributes_the_standard_normal():
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    split = Split(4, UnitNormal)
    a, contribution = split(x)
    torch.testing.assert_close(contribution, reference.Normal(0, 1).log_prob(x[:, 2:]).sum((1, 2, 3)))
    assert split.encode(x)[1].equal(x[:, 2:]) and split.inverse(a).dtype == torch.float64


def test_nets_start_at_zero():
    images, vectors = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    coupling = initialized(Coupling(3, partial(ResNet, width=4, num_blocks=2), TanhAffine, Checkerboard), images)
    z, log_det = coupling(images)
    assert z.equal(images) and log_det.eq(0).all()
    assert MLP(3, 2, [4, 4]).double()(vectors).eq(0).all()


# --- the two flows ---------------------------------------------------------------------------------------------------


def scales(num_scales):
    net = partial(ResNet, num_blocks=1)
    return RealNVPScales(num_scales, 3, 4, 4, net, TanhAffine, ActNorm, partial(Split, prior=UnitNormal))


def test_scales_are_those_of_the_paper():
    transforms, shape = scales(3)((3, 32, 32))
    assert [type(t) for t in transforms] == [Sequential, Split, Sequential, Split, Sequential] and shape == (12, 8, 8)
    couplings = [[part for part in t.parts if isinstance(part, Coupling)] for t in transforms[::2]]
    kinds = [[type(c.partition) for c in scale] for scale in couplings]
    assert kinds == [[Checkerboard] * 3 + [ChannelHalves] * 3] * 2 + [[Checkerboard] * 4]
    flips = [[c.partition.flip for c in scale] for scale in couplings]
    assert flips == [[False, True, False] * 2] * 2 + [[False, True] * 2]
    widths = [[c.net.net[-1].in_channels for c in scale] for scale in couplings]
    assert widths == [[4] * 3 + [8] * 3, [8] * 3 + [16] * 3, [16] * 4]
    assert scales(1)((1, 3, 5))[1] == (1, 3, 5), "one scale takes odd sizes"
    with pytest.raises(ValueError, match="at most 2"):
        scales(3)((1, 6, 6))


def test_flat_has_the_stated_parts():
    couple = partial(Coupling, conditioner=partial(MLP, hidden=[4]), scalar_map=Additive, partition=OddEven)
    (flow,), shape = Flat(2, {"coupling": couple}, {"scaling": partial(Scaling, factor=1.0)})((3, 2, 2))
    assert [type(t) for t in flow.parts] == [Flatten, Coupling, Coupling, Scaling] and shape == (12,)


def small(name, *overrides, shape=(1, 4, 4), levels=256, classes=None, dtype=torch.float32):
    return ready(build_model(compose(f"model={name}", "debug=tiny", *overrides, *shaped(shape, levels, classes)), dtype), 0.1)


@pytest.mark.parametrize("name, latents", [("nice", [(32,)]), ("realnvp", [(4, 2, 2), (4, 2, 2)])])
def test_latents_give_back_the_image(name, latents):
    model = small(name, shape=(2, 4, 4))
    x, _ = random_batch(model.spec, 6)
    z = model.encode(x)
    assert [tuple(part.shape[1:]) for part in z] == latents
    assert model.decode(z).equal(x)
    assert model.sample(2, temperature=0.0)[0].equal(model.sample(1, temperature=0.0)[0])
    assert model(x).kind is Kind.WEIGHT


@pytest.mark.parametrize("name", ["nice", "realnvp"])
def test_labels_need_a_base_that_takes_them(name):
    with pytest.raises(ValueError, match="LearnedNormal"):
        small(name, "model.conditional=true", classes=3)
    model = small(name, "model.conditional=true", "model.base._target_=models.distributions.bases.LearnedNormal", classes=3)
    x, y = random_batch(model.spec, 6)
    assert model.decode(model.encode(x, y), y).equal(x) and model.sample(6, y).shape == x.shape
    assert not model.decode(model.encode(x, y), (y + 1) % 3).equal(x)


# --- round trips -----------------------------------------------------------------------------------------------------


class Lossy(Flatten):
    """A flow whose way back is off by ``error``, in the last dimension alone."""

    def __init__(self, shape, error):
        super().__init__(shape)
        self.error = error

    def inverse_and_log_det(self, z, context=None):
        x, log_det = super().inverse_and_log_det(z, context)
        x[..., -1] += self.error
        return x, log_det


def lossy(error, levels=4):
    spec = DataSpec((1, 2, 3), levels)
    dequantization = None if levels is None else UniformDequantization(levels)
    model = Flow(spec, dequantization, None, lambda shape: ([Lossy(shape, error)], (6,)), LearnedNormal, False)
    return model.eval()


@pytest.fixture
def pages(monkeypatch):
    drawn = {}
    keep = lambda images, path, titles, captions, **_: drawn.update({path.name: (images, captions)})
    monkeypatch.setattr("models.evaluators.round_trip.save_labelled", keep)
    return drawn


def test_round_trip_measures_a_known_error(tmp_path, pages):
    """0.05 of the range is 0.2 of 4 levels and rounds back; 0.2 of it is 0.8 and does not, but in two columns of three."""
    for error, share in ((0.05, 1.0), (0.2, None)):
        found = by_metric(RoundTrip(None, 2)(context(tmp_path, lossy(error))))
        for form, accuracy in (("float32", 1e-5), ("precise", 1e-5), ("float64", 1e-12)):
            assert found[f"round_trip_{form}_levels"]["value"] == pytest.approx(4 * error, rel=accuracy)
            assert found[f"round_trip_{form}_mean_levels"]["value"] == pytest.approx(4 * error / 3, rel=accuracy)
            kept = found[f"round_trip_{form}_exact"]
            assert kept["value"] == share if share else 2 / 3 <= kept["value"] < 0.8  # the top level is clamped to itself
            assert kept["count"] == 5 and kept["kind"] == "exact"
    images, captions = pages["round_trip_test_raw.png"]
    assert images.shape == (4, 3, 2, 3) and captions == ["", "8.0e-01"] * 2


def test_round_trip_of_continuous_data_and_of_what_is_not_finite(tmp_path, pages):
    found = by_metric(RoundTrip(3, 2)(context(tmp_path, lossy(0.25, None))))
    assert set(found) == {f"round_trip_{d}_{m}units" for d in ("float32", "precise", "float64") for m in ("", "mean_")}
    assert found["round_trip_float64_units"]["value"] == pytest.approx(0.25) and found["round_trip_float64_units"]["count"] == 3
    assert by_metric(RoundTrip(3, 2)(context(tmp_path, lossy(torch.nan))))["round_trip_float32_levels"]["value"] == torch.inf


def test_round_trip_shares_images_among_ranks(tmp_path, pages, monkeypatch):
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("models.evaluators.base.Context.gather", lambda self, item: parts.append(item) or [item])
        RoundTrip(None, 1)(context(tmp_path, lossy(0.1), rank=rank, world=2))
    assert sorted(torch.cat([index for part in parts[::3] for index, *_ in part]).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["nice", "realnvp", "glow"])
def test_round_trip_of_each_flow(name, tmp_path, pages):
    model = small(name)
    found = by_metric(RoundTrip(None, 3)(context(tmp_path, model)))
    assert found["round_trip_float64_levels"]["value"] < 1e-9 < found["round_trip_float32_levels"]["value"] < 0.1
    assert found["round_trip_float64_levels"]["value"] < found["round_trip_precise_levels"]["value"] < 1e-3
    assert all(found[f"round_trip_{form}_exact"]["value"] == 1.0 for form in ("float32", "precise", "float64"))
    assert next(model.parameters()).dtype == torch.float32, "the model itself is left as it was"


def test_mistakes_are_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="no flow"):
        RoundTrip(4, 1)(context(tmp_path, Table()))
    for make, message in (
        (lambda: RoundTrip(0, 1), "at least 1"),
        (lambda: Logit(0.5), "between 0 and 0.5"),
        (lambda: OddEven(1), "at least two"),
        (lambda: ChannelHalves(1), "two channels"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_data_set_one_scale_for_all_numbers():
    """NICE's scaling starts where all numbers of the first batch together have variance 1."""
    config = compose("model=nice", "debug=tiny", *shaped((1, 4, 4), 256))
    model = build_model(config)
    x, _ = random_batch(model.spec, 256)
    initialize(model, x)
    assert torch.cat(model.encode(x)).std().item() == pytest.approx(1, abs=0.01)
    scale = model.transforms[-1].parts[-1].log_scale
    assert (scale == scale[0]).all()
    assert isinstance(model.base, StandardLogistic) and not isinstance(model.base, StandardNormal)
