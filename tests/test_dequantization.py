"""Dequantizations: uniform, variational and argmax, for every flow; and what their bounds lose."""

from __future__ import annotations

from math import log

import pytest
import torch
from torch.nn.functional import logsigmoid

from datamodules.base import DataModule, Split
from models.build import ConfigError
from models.contracts import Kind
from models.evaluators.base import Context
from models.evaluators.importance_weighted import ImportanceWeighted
from tests.conftest import MODELS, ROOT, build_model, compose, shaped
from tests.laws import check_normalized, check_samples, check_score, random_batch, ready

LEARNED = ["variational", "argmax", "argmax_onehot"]


def flow(*overrides, shape=(1, 2, 2), levels=3, scale=0.05):
    return ready(build_model(compose(*overrides, "debug=tiny", *shaped(shape, levels)), torch.float64), scale)


def dequantization(name, shape=(2, 4, 6), levels=5, scale=0.2):
    """One of its own, initialised on random images and disturbed."""
    return flow("model=glow", f"dequantization={name}", shape=shape, levels=levels, scale=scale).dequantization


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("name", ["uniform", "variational", "argmax"])
def test_the_inverse_gives_back_the_integers(name, levels):
    check_inverse(name, levels)


def test_the_inverse_of_one_hot_gives_back_the_integers():
    check_inverse("argmax_onehot", 5)


def check_inverse(name, levels):
    made = dequantization(name, levels=levels)
    x = torch.randint(0, levels, (40, 2, 4, 6), dtype=torch.uint8)
    z, contribution = made(x)
    assert z.shape[1:] == made.shape((2, 4, 6)) and contribution.shape == (40,)
    for point in (z, made.midpoint(x)):
        assert made.inverse(point).equal(x) and made.inverse(point).dtype == torch.uint8
        assert made.on_data(point).all()
    assert made.unit_interval == bool(((z >= 0) & (z <= 1)).all())


@pytest.mark.parametrize("name, factor", [("uniform", 1), ("variational", 1), ("argmax", 3), ("argmax_onehot", 5)])
def test_shapes(name, factor):
    assert dequantization(name).shape((2, 4, 6)) == (2 * factor, 4, 6)


@pytest.mark.parametrize("name", LEARNED)
def test_contribution_is_minus_the_log_density_of_what_is_drawn(name):
    """log q(z | x) = log p(noise) - log |det dz / dnoise|, with autograd's Jacobian."""
    made = dequantization(name, shape=(1, 2, 2), levels=3, scale=0.5)
    x = torch.randint(0, 3, (1, 1, 2, 2), dtype=torch.uint8)
    base, noise = made.noise.base(), torch.randn(1, *made.shape((1, 2, 2)), dtype=torch.float64)

    def draw(flat):
        eps = flat.view(noise.shape)
        made.noise.base.forward = lambda: Given(eps, base.log_prob(eps))
        return made(x)

    jacobian = torch.autograd.functional.jacobian(lambda flat: draw(flat)[0].flatten(), noise.flatten())
    wanted = torch.linalg.slogdet(jacobian).logabsdet - base.log_prob(noise)
    torch.testing.assert_close(draw(noise.flatten())[1], wanted, rtol=0, atol=1e-9)


class Given:
    """The base that drew just this."""

    def __init__(self, eps, log_prob):
        self.draw = eps, log_prob

    def rsample_and_log_prob(self, n):
        return self.draw


def without_nets(made):
    """The noise is what the base draws: all last layers give 0."""
    for name, parameter in made.named_parameters():
        if ".net.last." in name and name.endswith((".g", ".b")):
            torch.nn.init.zeros_(parameter)
    return made


def test_variational_dequantization_starts_as_uniform():
    made = without_nets(dequantization("variational", levels=7))
    x = torch.randint(0, 7, (2000, 2, 4, 6), dtype=torch.uint8)
    z, contribution = made(x)
    torch.testing.assert_close(contribution, torch.full((2000,), -48 * log(7), dtype=torch.float64))
    u = (7 * z - x).flatten().sort().values
    distance = (u - torch.linspace(0, 1, len(u), dtype=u.dtype)).abs().max()  # Kolmogorov's, exceeded once in 10^5
    assert distance < 2.5 / len(u) ** 0.5


def test_argmax_dequantization_starts_as_the_posterior_of_independent_logistics():
    """v_x is a logistic about log K, and the others are logistics of which it is known that they are below v_x."""
    made = without_nets(dequantization("argmax_onehot", shape=(1, 2, 2), levels=4))
    v, contribution = made(torch.zeros(5000, 1, 2, 2, dtype=torch.uint8))
    share = (torch.sigmoid(v[:, 1:]) / torch.sigmoid(v[:, :1])).flatten().sort().values
    assert (share - torch.linspace(0, 1, len(share), dtype=share.dtype)).abs().max() < 2.5 / len(share) ** 0.5
    log_density = lambda t: logsigmoid(t) + logsigmoid(-t)
    wanted = log_density(v[:, :1] - log(4)) + (log_density(v[:, 1:]) - logsigmoid(v[:, :1])).sum(1, keepdim=True)
    torch.testing.assert_close(contribution, -wanted.flatten(1).sum(1))


@pytest.mark.parametrize(
    "model, name, levels, mass",
    [
        ("maf", "variational", 3, None),
        ("glow", "variational", 3, None),
        ("maf", "argmax", 2, 1.0),
        ("maf", "argmax", 3, None),
        ("maf", "argmax_onehot", 3, 1.0),
    ],
)
def test_probabilities_sum_to_the_mass_on_the_data(model, name, levels, mass):
    made = flow(f"model={model}", f"dequantization={name}", levels=levels)
    check_normalized(made, draws=500)
    assert made.score(*random_batch(made.spec, 2)).kind is Kind.WEIGHT
    on_data = made.dequantization.on_data(made.sample_continuous(2000)).double().mean()
    assert on_data == mass if mass else on_data < 0.99


def test_argmax_is_for_binary_images():
    model = flow("model=glow", "dequantization=argmax", "data=mnist_static", shape=(1, 28, 28), levels=2)
    assert len(model.transforms) == 1, "what moves [0, 1] is left out"
    x, _ = random_batch(model.spec, 3)
    assert model.decode(model.encode(x)).equal(x)
    check_samples(model)


FLOWS = [name for name in MODELS if "${dequantization}" in (ROOT / "conf/model" / f"{name}.yaml").read_text()]


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_takes_variational_dequantization(name):
    check_flow(name, "variational")


@pytest.mark.parametrize("name", ["realnvp", "nsf_image", "flowpp"])
def test_flows_take_argmax_dequantization(name):
    check_flow(name, "argmax")


def check_flow(name, slot):
    """It scores, samples, and its likelihood trains what dequantizes too."""
    model = flow(f"model={name}", f"dequantization={slot}", shape=(1, 4, 4), levels=5)
    check_score(model)
    model.train().score(*random_batch(model.spec, 6)).nats.sum().backward()
    learned = [p.grad is not None for n, p in model.named_parameters() if "dequantization.noise" in n]
    assert learned and all(learned)
    with torch.no_grad():
        check_samples(model.eval())


def test_an_odd_width_is_refused():
    with pytest.raises(ConfigError, match="need an even width"):
        flow("model=nice", "dequantization=variational", shape=(1, 4, 3))


def test_an_energy_takes_no_argmax():
    with pytest.raises(ConfigError, match="dequantization=uniform or"):
        flow("model=fce", "dequantization=argmax")


def test_couplings_that_squeeze_are_no_noise():
    with pytest.raises(ConfigError, match="keeps its shape"):
        flow("model=nice", "dequantization=variational", "+tiny.dequantization.noise.architecture.num_couplings=[[0,1],[1,0]]")


class Digits(DataModule):
    """Images of one bright half, six of them."""

    def load(self, split):
        x = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
        x[:, :, 0] = 2
        return Split(x)


def test_a_trained_dequantization_raises_the_bound_and_the_gap_is_reported(tmp_path):
    """Under a fixed density, a learned q loses less than a uniform one, and averaging weights wins back less."""
    gaps, bounds, tight = {}, {}, {}
    density = flow("model=nice", "dequantization=uniform").float().state_dict()
    for name in ("uniform", "variational"):
        model = flow("model=nice", f"dequantization={name}").float()
        model.load_state_dict(density, strict=False)
        if name == "variational":
            optimizer = torch.optim.Adam(model.dequantization.parameters(), 0.01)
            x = Digits.load(None, "train").x.repeat(20, 1, 1, 1)
            for _ in range(150):
                optimizer.zero_grad()
                (-model.score(x).nats.mean()).backward()
                optimizer.step()
        data = Digits(spec=model.spec, name="halves", root=".", seed=0, batch_size=6, eval_batch_size=6, limit=None)
        context = Context(model.eval(), data, "test", tmp_path, seed=1, weights="raw")
        found = {item["metric"]: item for item in ImportanceWeighted(2000, 600)(context)}
        gap, error = found["bound_gap_bpd"], found["iw_nll_bpd"]["stderr"]
        assert gap["bound"] - gap["iw_bound"] == pytest.approx(gap["value"]) and gap["iw_bound"] == found["iw_nll_bpd"]["value"]
        assert gap["value"] > 0 and gap["kind"] == "estimate" and found["iw_nll_bpd"]["kind"] == "bound"
        gaps[name], bounds[name], tight[name] = gap["value"], gap["bound"], gap["iw_bound"]
    assert gaps["variational"] < 0.5 * gaps["uniform"] and bounds["variational"] < bounds["uniform"]
    assert tight["variational"] == pytest.approx(tight["uniform"], abs=0.02 + 5 * error), "the density is the same"
