"""Flows with surjections: densities that integrate to one, latents that give the data back, pictures of the plane."""

from functools import partial
from math import log

import numpy
import pytest
import torch
from scipy import stats

from models.build import ConfigError, instantiate
from models.contracts import DataSpec, Kind
from models.distributions.bases import LearnedNormal, StandardNormal
from models.distributions.logistic import StandardLogistic
from models.evaluators import density2d
from models.evaluators.base import Context
from models.evaluators.density2d import Density2D
from models.flow.flow import Flow
from models.flow.pooled import Pooled
from models.flow.stages import Stages
from models.transforms.absolute import Absolute
from models.transforms.affine_maps import SoftplusAffine
from models.transforms.box import Box
from models.transforms.conv1x1 import Conv1x1
from models.transforms.coupling import Coupling
from models.transforms.dequantize import UniformDequantization
from models.transforms.flatten import Flatten
from models.transforms.flip import Flip
from models.transforms.funnel import ConvFunnel, NetNormal
from models.transforms.maxpool import MaxPool
from models.transforms.rescale import Rescale
from models.transforms.sequence import Sequential
from models.transforms.sort import Ordered, Sort
from models.transforms.split import ConvNormal, Split
from models.transforms.surjection import Generative, Surjection
from tests.checks_bijection import check_bijection
from tests.conftest import build_model, compose, shaped
from tests.laws import check_normalized, ready
from tests.test_surjections import LEARNED, NET, SPLINE, UNIT, Conv, funnel, scattered


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def plane(stages, base=StandardNormal):
    model = Flow(DataSpec((2, 1, 1), None), None, None, Stages(stages), base, False)
    return scattered(model, 0.2).eval()


COUPLING = partial(Coupling, conditioner=NET, scalar_map=partial(SoftplusAffine, min_scale=1.0))
COUPLINGS = {"num_steps": 2, "parts": {"c": COUPLING, "f": Flip}}
BOX = partial(Box, bound=4.0, alpha=1e-9)


def stage(**parts):
    return {"num_steps": 1, "parts": parts}


PLANE = {
    "abs": {"a": stage(a=partial(Absolute, num=None, classifier=None), b=partial(BOX, num=None)), "c": COUPLINGS},
    "sign": {"a": stage(a=partial(Absolute, num=1, classifier=NET), b=partial(BOX, num=1))},
    "sort": {"a": stage(a=partial(Sort, size=2, scores=NET), b=partial(Ordered, size=2, alpha=1e-9)), "c": COUPLINGS},
    "funnel": {"a": COUPLINGS, "b": stage(f=lambda dim: funnel(dim, 1))},
}


@pytest.mark.parametrize("name", ["abs", "sign", "sort", "funnel"])
@torch.no_grad()
def test_densities_of_the_plane_integrate_to_one_and_are_what_is_drawn(name):
    model = plane(PLANE[name], StandardLogistic if name == "sign" else StandardNormal)
    edge, cells = (4.0, 400) if name in ("abs", "sign") else (12.0, 800)
    offset = 0.6 * edge / cells if name == "sort" else 0.0  # off the diagonal, where its values are equal
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells * 2 * edge - edge
    score = model.score(torch.cartesian_prod(middle, middle + offset).view(-1, 2, 1, 1))
    assert score.kind is Kind.EXACT
    p = score.nats.exp().view(cells, cells) * (2 * edge / cells) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=5e-3)
    quarters = p.view(4, cells // 4, 4, cells // 4).sum((1, 3))
    draws = model.sample(20_000).flatten(1)
    place = ((draws + edge) / (edge / 2)).floor().clamp(0, 3).long()
    counts = torch.zeros(16, dtype=torch.float64).index_add(0, place[:, 0] * 4 + place[:, 1], torch.ones(20_000).double())
    error = (20_000 * quarters.flatten()).sqrt() + 20_000 * 5e-4
    assert ((counts - 20_000 * quarters.flatten()).abs() < 5 * error).all()


@pytest.mark.parametrize("name", ["abs", "sign", "sort", "funnel"])
def test_latents_of_a_flow_with_surjections_give_back_the_points(name):
    model = plane(PLANE[name])
    x = torch.randn(20, 2, 1, 1, dtype=torch.float64).clamp(-3.9, 3.9)
    latents = model.encode(x)
    assert len(latents) == 2 and model.num_residuals == 1
    torch.testing.assert_close(model.decode(latents), x, rtol=0, atol=1e-7)
    again = model.decode([None, latents[1]])
    torch.testing.assert_close(model.encode(again)[1], latents[1], rtol=0, atol=1e-5)
    assert not torch.allclose(again, x)


def test_a_flow_with_another_dimension():
    """[x, e], e ~ q(e | x): the weights of a point average to one density, whose integral is 1, and x comes back as it was."""
    spec = DataSpec((2, 1, 1), None)
    augment = lambda: Generative(Split(3, partial(NetNormal, conditioner=NET, bound=1.0), dropped=1))  # noqa: E731
    coupling = lambda: Sequential([COUPLING(3), Flip(), COUPLING(3)])  # noqa: E731
    model = Flow(spec, None, None, lambda shape: ([Flatten(shape), augment(), coupling()], (3,)), StandardNormal, False)
    model = scattered(model, 0.2)
    x = torch.randn(200_000, 2, 1, 1, dtype=torch.float64) * 2
    with torch.no_grad():
        score = model.score(x)
        weights = (score.nats - torch.distributions.Normal(0, 2).log_prob(x.double()).sum((1, 2, 3))).exp()
    assert score.kind is Kind.WEIGHT and list(score.terms) == ["logdet/0", "generative/0", "logdet/1", "base"]
    error = float(weights.std()) / len(x) ** 0.5
    assert abs(float(weights.mean()) - 1) < 5 * error and error < 0.01
    torch.testing.assert_close(model.decode(model.encode(x[:9])), x[:9], rtol=0, atol=1e-10)
    assert model.sample(5).shape == (5, 2, 1, 1)


def test_uniform_on_the_box():
    model = plane({"a": stage(b=partial(Box, num=1, bound=4.0, alpha=1e-9))}, StandardLogistic)
    x = torch.rand(50, 2, 1, 1, dtype=torch.float64) * 4
    x[::2, 1] *= -1
    torch.testing.assert_close(model(x).nats, torch.full((50,), -log(32), dtype=torch.float64), rtol=0, atol=1e-6)
    assert model(x - 8).nats.tolist() == [-torch.inf] * 50


@pytest.mark.parametrize(
    "make", [lambda: Box(3, 1, 4.0, 1e-3), lambda: Ordered(6, 3, 1e-3), lambda: Sequential([Flatten((6,)), Ordered(6, 2, 1e-3)])]
)
def test_bijections_after_surjections(make):
    transform = make()
    x = torch.rand(4, 3, 2, dtype=torch.float64) if isinstance(transform, Box) else torch.randn(4, 6, dtype=torch.float64)
    if not isinstance(transform, Box):
        x = x.view(4, 2, 3).sort(2).values.view(4, 6)
        x = x if isinstance(transform, Ordered) else x.view(4, 3, 2).sort(2).values.view(4, 6)
    check_bijection(transform, x)


def pooled_flow(pool):
    """A pool inside a 1x2x2 image, small enough to enumerate: [1, 2, 2] -> [1, 1, 1]."""
    spec = DataSpec((1, 2, 2), 3)
    model = Flow(spec, UniformDequantization(3), Rescale(4.0, -2.0), lambda shape: ([pool], (1, 1, 1)), LearnedNormal, False)
    return ready(model.double(), 0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MaxPool(1, UNIT),
        lambda: MaxPool(1, LEARNED),
        lambda: ConvFunnel(1, Conv, SPLINE, ConvNormal),
    ],
)
def test_pools_are_normalized(make):
    check_normalized(pooled_flow(make()), draws=2000)


@pytest.mark.parametrize("model", ["survae", "funnel_image"])
def test_pooled_images_come_back(model):
    config = compose(f"model={model}", "debug=tiny", "model.architecture.num_scales=2", *shaped((1, 8, 8), 17))
    flow = ready(build_model(config, torch.float64), 0.1)
    x = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8)
    latents = flow.encode(x)
    assert isinstance(flow.transforms[2], Surjection) and latents[1].shape == (5, 4, 2, 2)
    assert flow.decode(latents).equal(x)


def test_pooled_has_the_stated_parts():
    transforms, shape = Pooled(3, 2, {"a": Conv1x1}, partial(MaxPool, offsets=UNIT))((3, 32, 32))
    assert [type(t).__name__ for t in transforms] == ["Sequential", "MaxPool"] * 2 + ["Sequential"] and shape == (12, 4, 4)
    assert [len(t.parts) for t in transforms[::2]] == [3, 2, 2]


def test_mistakes_are_one_clear_line():
    for make, message in [
        (lambda: Absolute(2, 3, None), "1 to the number of channels"),
        (lambda: Sort(5, 2, None), "groups of 2"),
        (lambda: Ordered(4, 2, 0.0), "alpha must be positive"),
        (lambda: Box(2, None, 0.0, 1e-6), "bound must be positive"),
        (lambda: funnel(4, 4), "leave one of 4 channels"),
        (lambda: Pooled(2, 1, {}, MaxPool)((1, 28, 30)), "multiples of 4"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


# --- pictures of densities -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["survae_abs", "maf", "vae", "short_run_ebm"])
def test_density2d_draws_every_model_of_the_plane(model, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(density2d, "save_maps", lambda maps, extent, path, lines: drawn.update(maps=maps, lines=lines))
    heads = ["likelihood=gaussian"] if model == "vae" else []
    net = ready(build_model(compose(f"model={model}", "data=toy2d_corners", *heads, "debug=tiny")), 0.1)
    module = instantiate(compose("data=toy2d_corners")["data"])
    found = Density2D(num=300, bins=40, lines=5)(Context(net, module, "test", tmp_path, 1, "raw"))
    data, samples, density = (drawn["maps"][name] for name in ("data", "samples", "density"))
    assert data.sum() == 300 and 0 < samples.sum() <= 300 and numpy.isfinite(density).all() and density.max() > 0
    assert list(drawn["lines"]) == (["a grid of latents"] if model in ("survae_abs", "maf") else [])
    assert [record["metric"] for record in found] == ([] if model == "short_run_ebm" else ["density2d_mass"])


def test_density2d_of_a_known_density(tmp_path, monkeypatch):
    """A flow without steps: the standard normal at the midpoints, rows from the bottom, its mass, and a grid that is straight."""
    drawn = {}
    monkeypatch.setattr(density2d, "save_maps", lambda maps, extent, path, lines: drawn.update(maps, extent=extent, **lines))
    module = instantiate(compose("data=toy2d_corners")["data"])
    model = Flow(DataSpec((2, 1, 1), None), None, None, Stages({}), StandardNormal, False)
    (found,) = Density2D(num=5000, bins=50, lines=3)(Context(model, module, "test", tmp_path, 1, "raw"))
    left, right, bottom, top = drawn["extent"]
    x, y = (numpy.linspace(*ends, 101)[1::2] for ends in ((left, right), (bottom, top)))
    wanted = numpy.minimum(stats.norm.pdf(y)[:, None] * stats.norm.pdf(x), drawn["density"].max())
    numpy.testing.assert_allclose(drawn["density"], wanted, rtol=0.02)
    assert found["metric"] == "density2d_mass" and found["value"] == pytest.approx(1, abs=1e-3) and found["count"] == 2500
    lines = drawn["a grid of latents"]
    assert lines.shape == (6, 400, 2) and (lines[0, :, 0] == -3).all() and (lines[4, :, 1] == 0).all()


def test_density2d_refuses_images(tmp_path):
    model = build_model(compose("model=survae_abs", "debug=tiny"))
    with pytest.raises(ConfigError, match="take it out of evaluators"):
        Density2D(2, 2, 2)(Context(model, None, "test", tmp_path, 1, "raw"))
    with pytest.raises(ValueError, match="at least 2"):
        Density2D(2, 1, 2)
