"""Mistakes planted into flows, their dequantizations and surjections: the laws find each."""

from __future__ import annotations

from functools import partial
from math import log

import pytest
import torch

from models.contracts import Kind
from models.distributions import discretized
from models.flow.flow import Flow
from models.nn.masked import MADE, Walk
from models.transforms import absolute, actnorm, continuous, conv1x1, divergence, fused, logistic_mixture, maxpool, solvers, sort
from models.transforms.absolute import Absolute
from models.transforms.actnorm import ActNorm
from models.transforms.argmax_dequantization import ArgmaxDequantization, BinaryArgmaxDequantization
from models.transforms.autoencoder import AutoencoderBijection
from models.transforms.autoregressive import InverseAutoregressive, MaskedAutoregressive
from models.transforms.conditional_noise import ConditionalNoise
from models.transforms.conv1x1 import Conv1x1
from models.transforms.coupling import Coupling
from models.transforms.dequantize import UniformDequantization
from models.transforms.funnel import Funnel
from models.transforms.householder import Householder
from models.transforms.integer import IntegerShift
from models.transforms.logistic_mixture import LogisticMixture, LogisticMixtureCDF
from models.transforms.logit import Logit
from models.transforms.maxpool import MaxPool
from models.transforms.partitions import Checkerboard
from models.transforms.planar import Planar
from models.transforms.ppca import ProbabilisticPCA
from models.transforms.sequence import Sequential
from models.transforms.splines import RationalQuadratic
from models.transforms.split import Split
from models.transforms.variational_dequantization import VariationalDequantization
from tests import test_ffjord, test_surjections
from tests.laws import check_bijections, check_normalized, check_round_trip, tiny
from tests.mutations import assert_caught, normalized
from tests.test_surjections import UNIT
from tests.test_surjections_in_flows import pooled_flow

# --- flows ---------------------------------------------------------------------------------------------------------------


def test_forgotten_level_constant(monkeypatch):
    original = UniformDequantization.forward

    def forward(self, x, context=None):
        z, contribution = original(self, x)
        return z, torch.zeros_like(contribution)

    law = partial(normalized, "model=glow", scale=0.05)
    assert_caught(law, lambda: monkeypatch.setattr(UniformDequantization, "forward", forward), "probabilities sum to")


BIJECTIONS = {
    ActNorm: ["model=glow"],
    Conv1x1: ["model=glow"],
    Coupling: ["model=glow"],
    MaskedAutoregressive: ["model=vae", "prior=flow"],
    InverseAutoregressive: ["model=vae", "posterior=iaf"],
    Planar: ["model=vae", "posterior=planar"],
}
FORWARD, INVERSE = "forward", "inverse_and_log_det"


@pytest.mark.parametrize("directions", [[FORWARD], [INVERSE], [FORWARD, INVERSE]], ids=[FORWARD, "inverse", "both"])
@pytest.mark.parametrize("bijection", BIJECTIONS)
def test_log_det_of_the_wrong_sign(bijection, directions, monkeypatch):
    """In one direction the two disagree; in both they agree and only autograd can tell."""

    def negated(original):
        def method(self, x, *arguments):
            out, log_det = original(self, x, *arguments)
            return out, -log_det

        return method

    def plant():
        for name in directions:
            monkeypatch.setattr(bijection, name, negated(getattr(bijection, name)))

    assert_caught(lambda: check_bijections(tiny(*BIJECTIONS[bijection], shape=(1, 4, 4))), plant, "not close")


def test_log_det_of_the_wrong_sign_is_not_normalized(monkeypatch):
    def plant():
        original = Conv1x1.coefficients
        negated = lambda convs: (lambda weight, log_det: (weight, -log_det))(*original(convs))  # noqa: E731
        monkeypatch.setattr(Conv1x1, "coefficients", staticmethod(negated))

    assert_caught(partial(normalized, "model=glow", scale=0.05), plant, "probabilities sum to")


def test_log_det_of_one_position_only(monkeypatch):
    """The factor H W is forgotten, in both directions: of norms, of 1x1 convolutions, of both run as one."""
    law = lambda: check_bijections(tiny("model=glow", shape=(1, 4, 4)))  # noqa: E731
    one_position = lambda log_det, x: log_det.expand(len(x))  # noqa: E731
    for module in (actnorm, conv1x1, fused):
        with monkeypatch.context() as patch:
            assert_caught(law, lambda: patch.setattr(module, "over_positions", one_position), "not close")


# --- splines and autoregressive steps -------------------------------------------------------------------------------------


def forgets_the_derivative_at_a_knot(monkeypatch) -> None:
    """The log-det takes every derivative at a bin's right end to be 1."""
    slope = RationalQuadratic._log_slope
    monkeypatch.setattr(RationalQuadratic, "_log_slope", staticmethod(lambda t, s, d0, d1: slope(t, s, d0, torch.ones_like(d1))))


def does_not_reverse_the_places(monkeypatch) -> None:
    """The masks of the last layer keep to another order than those of the first: outputs see inputs from their own on."""
    original = MADE.__init__

    def planted(self, order, hidden, outputs, *rest):
        original(self, order, hidden, outputs, *rest)
        self.last.mask.copy_(self.last.mask.flip(0))

    monkeypatch.setattr(MADE, "__init__", planted)


def counts_a_unit_one_place_early(monkeypatch) -> None:
    """The inverse takes a hidden unit to see one input less than it does."""
    original = Walk.__init__

    def planted(self, net, *rest):
        original(self, net, *rest)
        for layer in self.layers:
            layer.append(layer.pop(0))

    monkeypatch.setattr(Walk, "__init__", planted)


@pytest.mark.parametrize(
    "plant, model",
    [
        (forgets_the_derivative_at_a_knot, "model=nsf"),
        (forgets_the_derivative_at_a_knot, "model=nsf_ar"),
        (does_not_reverse_the_places, "model=maf"),
        (does_not_reverse_the_places, "model=iaf"),
        (counts_a_unit_one_place_early, "model=maf"),
    ],
)
def test_wrong_splines_and_orders(plant, model, monkeypatch):
    assert_caught(lambda: check_bijections(tiny(model, shape=(1, 2, 2))), lambda: plant(monkeypatch), "not close")


@pytest.mark.parametrize("model", ["glow", "nsf", "maf"])
def test_latents_of_float32_arithmetic(model, monkeypatch):
    law = lambda: check_round_trip(tiny(f"model={model}", shape=(1, 4, 4)).float())  # noqa: E731
    plain = lambda self, precise, method, *arguments: method(*arguments)  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(Flow, "_run", plain), "not those of float64")


# --- NICE and RealNVP ----------------------------------------------------------------------------------------------------


def test_a_checkerboard_inverted_on_one_side_only(monkeypatch):
    """The pixels that move are written where those that stay belong."""
    join = Checkerboard.join

    def swapped(self, seen, moved):
        return join(Checkerboard(self.seen_channels, not self.flip), seen, moved)

    law = lambda: check_bijections(tiny("model=realnvp", shape=(1, 4, 4)))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(Checkerboard, "join", swapped), "not close")


def test_a_net_that_sees_the_pixels_it_moves(monkeypatch):
    split = Checkerboard.split
    law = lambda: check_bijections(tiny("model=realnvp", shape=(1, 4, 4)))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(Checkerboard, "split", lambda self, x: (x, split(self, x)[1])), "not close")


def test_forgotten_log_det_of_the_logit(monkeypatch):
    """In both directions, which then agree: autograd tells, and so does the sum of the probabilities."""
    forgotten = lambda self, z: z.new_zeros(len(z))  # noqa: E731
    with monkeypatch.context() as patch:
        law = lambda: check_bijections(tiny("model=realnvp", shape=(1, 4, 4)))  # noqa: E731
        assert_caught(law, lambda: patch.setattr(Logit, "_log_det", forgotten), "not close")
    law = partial(normalized, "model=realnvp")
    assert_caught(law, lambda: monkeypatch.setattr(Logit, "_log_det", forgotten), "probabilities sum to")


# --- integer flows --------------------------------------------------------------------------------------------------------


def test_a_translation_that_is_rounded_one_way_only(monkeypatch):
    law = lambda: check_bijections(tiny("model=idf", shape=(1, 4, 4)))  # noqa: E731
    unrounded = lambda self, z, params: (z - params, torch.zeros_like(z))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(IntegerShift, "inverse", unrounded), "not close")


def test_integers_at_the_edges_of_their_bins(monkeypatch):
    """The masses of all integers still sum to 1; those of the images no longer to what is drawn."""
    mass = discretized.interval_log_prob
    shifted = lambda low, high, *rest: mass(low + 0.5, high + 0.5, *rest)  # noqa: E731
    law = partial(normalized, "model=idf")
    assert_caught(law, lambda: monkeypatch.setattr(discretized, "interval_log_prob", shifted), "probabilities sum to")


# --- dequantizations and mixtures of logistics -----------------------------------------------------------------------------


def a_level_too_few(monkeypatch) -> None:
    """-D log(K - 1): 255 where 256 belongs."""
    original = UniformDequantization.forward

    def forward(self, x, context=None):
        z, contribution = original(self, x)
        return z, contribution * log(self.levels - 1) / log(self.levels)

    monkeypatch.setattr(UniformDequantization, "forward", forward)


def forgets_the_density_of_the_noise(monkeypatch) -> None:
    original = ConditionalNoise.forward
    monkeypatch.setattr(ConditionalNoise, "forward", lambda self, x: (original(self, x)[0], torch.zeros(len(x), dtype=x.dtype)))


def forgets_the_levels_of_what_is_squashed(monkeypatch) -> None:
    original = VariationalDequantization.forward

    def forward(self, x, context=None):
        z, contribution = original(self, x)
        return z, contribution + x[0].numel() * log(self.levels)

    monkeypatch.setattr(VariationalDequantization, "forward", forward)


def forgets_the_slope_of_a_threshold(cls):
    def plant(monkeypatch) -> None:
        threshold = cls.threshold
        monkeypatch.setattr(cls, "threshold", lambda self, u, x: (threshold(self, u, x)[0], torch.zeros_like(u)))

    return plant


@pytest.mark.parametrize(
    "slot, levels, plant",
    [
        ("uniform", 3, a_level_too_few),
        ("variational", 3, forgets_the_density_of_the_noise),
        ("variational", 3, forgets_the_levels_of_what_is_squashed),
        ("argmax", 2, forgets_the_slope_of_a_threshold(BinaryArgmaxDequantization)),
        ("argmax_onehot", 2, forgets_the_slope_of_a_threshold(ArgmaxDequantization)),
    ],
)
def test_wrong_dequantization(slot, levels, plant, monkeypatch):
    law = partial(normalized, "model=maf", f"dequantization={slot}", levels=levels, scale=0.05)
    assert_caught(law, lambda: plant(monkeypatch), "probabilities sum to|too uncertain")


def forgets_the_slope_of_a_mixture(monkeypatch) -> None:
    """In both directions."""
    original = LogisticMixture._shape

    def flat(self, params):
        a, b, mixture = original(self, params)
        exact = mixture.logit
        mixture.logit = lambda x: (exact(x)[0], torch.zeros_like(x))
        return a, b, mixture

    monkeypatch.setattr(LogisticMixture, "_shape", flat)


def stops_the_search_early(monkeypatch) -> None:
    monkeypatch.setattr(logistic_mixture, "MAX_STEPS", 1)


def knows_no_gradient_of_a_quantile(monkeypatch) -> None:
    monkeypatch.setattr(LogisticMixtureCDF, "quantile", lambda self, y: self._search(y).detach())


@pytest.mark.parametrize(
    "plant", [forgets_the_slope_of_a_mixture, stops_the_search_early, knows_no_gradient_of_a_quantile]
)
def test_wrong_mixtures_of_logistics(plant, monkeypatch):
    law = lambda: check_bijections(tiny("model=flowpp", "dequantization=uniform", scale=0.3))  # noqa: E731
    assert_caught(law, lambda: plant(monkeypatch), "not close")


# --- surjections ----------------------------------------------------------------------------------------------------------

A_COIN = [f"{node}.architecture.stages.surjection.parts.sort.scores=null" for node in ("model", "tiny.model")]


@pytest.mark.parametrize(
    "overrides, module, name",
    [
        (["experiment=survae_toy_abs_corners"], absolute, "log"),
        (["model=survae_sort", *A_COIN], sort, "lgamma"),
    ],
)
def test_a_forgotten_choice_among_those_that_look_alike(overrides, module, name, monkeypatch):
    """log 2 for every sign, log n! for every order."""
    law = partial(normalized, *overrides)
    assert_caught(law, lambda: monkeypatch.setattr(module, name, lambda value: 0.0), "probabilities sum to")


def test_a_forgotten_place_of_the_maximum(monkeypatch):
    law = lambda: check_normalized(pooled_flow(MaxPool(1, UNIT)), draws=1500)  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(maxpool, "log", lambda value: 0.0), "probabilities sum to")


def test_a_funnel_without_the_volume_of_what_it_keeps(monkeypatch):
    law = partial(normalized, "model=funnel")
    forgets = lambda self, x, context=None: Split.forward(self, self.coupling(x)[0])  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(Funnel, "forward", forgets), "probabilities sum to")


def test_signs_that_are_drawn_the_other_way_round(monkeypatch):
    decode = Absolute.decode

    def turned(self, z, residual=None, temperature=1.0):
        return decode(self, z, residual, temperature) * (-1 if residual is None else 1)

    law = test_surjections.test_signs_are_drawn_as_often_as_they_are_likely
    assert_caught(law, lambda: monkeypatch.setattr(Absolute, "decode", turned))


# --- continuous flows, linear models, Gaussianization ----------------------------------------------------------------------


def test_a_trace_with_the_wrong_sign(monkeypatch):
    trace = divergence.Exact.__call__
    law = lambda: check_bijections(tiny("model=ffjord"))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(divergence.Exact, "__call__", lambda *a: -trace(*a)), "not close")


def test_time_that_does_not_turn_back(monkeypatch):
    """The inverse solves with speed -v, but from time 0 on; a field that ignores time would hide it."""

    class Forgetful(continuous.Rates):
        def __call__(self, s, state):
            return super().__call__(1 - s if self.backwards else s, state)

    law = lambda: check_bijections(tiny("model=ffjord"))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(continuous, "Rates", Forgetful), "not close")


def test_hutchinson_without_its_noise(monkeypatch):
    law = lambda: test_ffjord.test_estimated_log_det_is_unbiased(divergence.Rademacher(), False)  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(divergence.Rademacher, "draw", lambda self, x: torch.ones_like(x)))


def test_an_estimate_reported_as_exact(monkeypatch):
    assert_caught(test_ffjord.test_kinds, lambda: monkeypatch.setattr(Sequential, "kind", Kind.EXACT))


def test_an_adjoint_that_misses_a_parameter(monkeypatch):
    call = solvers.Solver.__call__
    forget = lambda self, rates, state, parameters: call(self, rates, state, parameters[:1])  # noqa: E731
    law = lambda: test_ffjord.test_adjoint_gradients_against_those_through_the_solver(False)  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(solvers.Solver, "__call__", forget), "None mismatch")


def test_a_gaussian_without_its_noise_scale(monkeypatch):
    """The log-det of the low-rank part alone."""
    part = lambda self, lower, x: -lower.diagonal().log().sum().expand(len(x))  # noqa: E731
    law = lambda: check_bijections(tiny("model=ppca"))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(ProbabilisticPCA, "_log_det", part), "not close")


def test_a_rotation_inverted_by_itself(monkeypatch):
    law = lambda: check_bijections(tiny("model=gaussianization"))  # noqa: E731
    apply = Householder._apply_to
    once = lambda self, x, transposed: apply(self, x, False)  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(Householder, "_apply_to", once), "not close")


def test_an_encoder_that_sees_the_core(monkeypatch):
    """Its z then depends on the core through the net as well, which the log-det does not count."""
    image, forward = AutoencoderBijection._image, AutoencoderBijection.forward

    def seen(self, x, context=None):
        with monkeypatch.context() as patch:
            core = x.flatten(1)[:, self.core]
            patch.setattr(AutoencoderBijection, "_image", lambda self, shell, _=None: image(self, shell, core))
            return forward(self, x, context)

    law = lambda: check_bijections(tiny("model=aef"))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(AutoencoderBijection, "forward", seen), "not close")
