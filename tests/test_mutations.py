"""Tests of the tests: known mistakes, planted one at a time into real models, must break the law that is there to find them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from math import log

import pytest
import torch

from callbacks.ema import weights_of
from datamodules.base import DataModule
from models.autoregressive import diagonal_lstm, masked_conv_cache, pixelcnnpp, pixelcnnpp_cache, pixelrnn, row_lstm, transformer
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Column
from models.build import ConfigError, instantiate
from models.contracts import GenerativeModel, Kind, Score
from models.distributions import discretized
from models.evaluators.nearest import nearest
from models.flow.flow import Flow
from models.latent.vae import VAE
from models.likelihoods import logistic
from models.likelihoods.bernoulli import Bernoulli
from models.nn.attention import CausalAttention
from models.nn.data_init import DataInitialized
from models.nn.masked import MADE, Walk
from models.nn.masked_conv import MaskedConv2d
from models.objectives import importance_weighted
from models.seeding import generator
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
from tests import test_compress, test_data, test_evaluators_autoregressive, test_ffjord, test_latent, test_surjections
from tests.checks_causal import check_cache, check_causal
from tests.conftest import build_model, compose, shaped
from tests.laws import (
    check_bijections,
    check_frequencies,
    check_normalized,
    check_reload,
    check_round_trip,
    check_swap,
    random_batch,
    ready,
    tiny,
    untrained,
    widen,
)  # fmt: skip
from tests.test_surjections import UNIT, pooled_flow


def assert_caught(law: Callable[[], None], plant: Callable[[], None], message: str | None = None) -> None:
    """``law`` holds; once the mistake is planted it fails, for the reason in ``message`` if that is given."""
    torch.manual_seed(0)
    law()
    plant()
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        law()


def normalized(*overrides: str, **space) -> None:
    check_normalized(widen(tiny(*overrides, **space)), draws=1500)


# --- autoregressive nets -------------------------------------------------------------------------------------------------

LEAKS = pytest.mark.parametrize("shift", ["right_shift", "down_shift"])


@LEAKS
def test_a_net_that_sees_the_pixel_it_predicts_is_not_causal(shift, monkeypatch):
    def law():
        check_causal(tiny("model=pixelcnnpp", shape=(1, 4, 4)).net, (1, 4, 4))

    assert_caught(law, lambda: monkeypatch.setattr(pixelcnnpp, shift, lambda x: x), "is not before it")


@LEAKS
def test_a_net_that_sees_the_pixel_it_predicts_is_not_normalized(shift, monkeypatch):
    law = partial(normalized, "model=pixelcnnpp", scale=0.3)
    assert_caught(law, lambda: monkeypatch.setattr(pixelcnnpp, shift, lambda x: x), "probabilities sum to")


@pytest.mark.parametrize("slot", ["posterior=iaf", "prior=flow"])
def test_a_leaky_mask(slot, monkeypatch):
    """An output that sees the input of its own place."""
    original = MADE.__init__

    def leaky(self, order, hidden, outputs, *rest):
        original(self, order, hidden, outputs, *rest)
        self.last.mask.fill_(1.0)

    law = lambda: check_bijections(tiny("model=vae", slot, "model.latent_dim=3", scale=0.3))  # noqa: E731
    assert_caught(law, lambda: monkeypatch.setattr(MADE, "__init__", leaky), "not close")


def forgets_a_row(monkeypatch) -> None:
    """A convolution over rows keeps the second window it was given."""
    write = pixelcnnpp_cache.RowConv.write

    def stale(self, row, column=0):
        self.count = getattr(self, "count", 0) + 1
        if self.count < 3:
            write(self, row, column)

    monkeypatch.setattr(pixelcnnpp_cache.RowConv, "write", stale)


def forgets_a_pixel(monkeypatch) -> None:
    """A convolution over pixels is not told of the last column."""
    write = pixelcnnpp_cache.PixelConv.write

    def stale(self, pixel, column):
        if column < self.row.shape[1] // self.channels - self.margin - 1 or column == 0:
            write(self, pixel, column)

    monkeypatch.setattr(pixelcnnpp_cache.PixelConv, "write", stale)


def forgets_what_is_above(monkeypatch) -> None:
    """The row above is taken once and for all."""
    begin_row = pixelcnnpp_cache.PixelConv.begin_row

    def stale(self, sides=0.0):
        if not hasattr(self, "known"):
            begin_row(self, sides)

    monkeypatch.setattr(pixelcnnpp_cache.PixelConv, "begin_row", stale)


def forgets_a_coarse_pixel(monkeypatch) -> None:
    """An enlarged pixel stays from the row before."""
    write = pixelcnnpp_cache.PixelGrow.write

    def stale(self, pixel, column):
        if self.pixels[column] is None:
            write(self, pixel, column)

    monkeypatch.setattr(pixelcnnpp_cache.PixelGrow, "write", stale)


@pytest.mark.parametrize("plant", [forgets_a_row, forgets_a_pixel, forgets_what_is_above, forgets_a_coarse_pixel])
def test_a_stale_cache(plant, monkeypatch):
    model = tiny("model=pixelcnnpp", shape=(1, 8, 8), levels=17)
    reals = 2 * torch.rand(2, 1, 8, 8, dtype=torch.float64) - 1
    assert_caught(lambda: check_cache(model.net, reals), lambda: plant(monkeypatch), "not close")


# --- heads ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["model=vae", "model=pixelcnnpp"])
def test_forgotten_edge_bins(model, monkeypatch):
    """The first and last level take a bin's mass like the others, and the tails are lost."""
    exact = logistic.bin_log_prob

    def interior(t, location, rate, levels):
        return exact(t, location, rate, levels + 4)

    law = partial(normalized, model)
    assert_caught(law, lambda: monkeypatch.setattr(logistic, "bin_log_prob", interior), "probabilities sum to 0.")


COLOUR = {"shape": (3, 1, 1), "scale": 0.5}


def test_coupling_to_the_wrong_channels_is_not_normalized(monkeypatch):
    """Locations follow the channels from the last, which in ``log_prob`` are those not yet known."""

    def swapped(c, coefficients, earlier):
        first = c * (c - 1) // 2
        return sum(coefficients[..., first + d, :, :] * earlier[-1 - d] for d in range(c))

    def plant():
        monkeypatch.setattr(logistic.MixtureLogistic, "_shift", staticmethod(swapped))

    assert_caught(partial(normalized, "model=pixelcnnpp", **COLOUR), plant, "probabilities sum to")


def test_scoring_channels_in_another_order_than_sampling(monkeypatch):
    """Normalized all the same: only the frequencies of samples can tell."""
    original = logistic.MixtureLogistic.log_prob_map

    def plant():
        flipped = lambda self, params, x: original(self, params, x.flip(1))  # noqa: E731
        monkeypatch.setattr(logistic.MixtureLogistic, "log_prob_map", flipped)

    assert_caught(lambda: check_frequencies(tiny("model=pixelcnnpp", **COLOUR)), plant, "was drawn")
    normalized("model=pixelcnnpp", **COLOUR)


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


# --- bounds --------------------------------------------------------------------------------------------------------------


def test_analytic_kl_is_refused_inside_an_importance_average():
    config = compose("model=vae", "objective=importance_weighted", "model.analytic_kl=true", "debug=tiny", *shaped((1, 2, 2), 3))
    model = ready(build_model(config))
    objective = instantiate(config["objective"])
    with pytest.raises(ConfigError, match="analytic_kl=false"):
        objective(model, random_batch(model.spec, 4), 0)


def test_analytic_kl_passed_off_as_a_weight_is_not_normalized(monkeypatch):
    score = VAE.score

    def plant():
        monkeypatch.setattr(VAE, "score", lambda self, x, y=None: Score(score(self, x, y).nats, Kind.WEIGHT))

    assert_caught(partial(normalized, "model=vae", "model.analytic_kl=true"), plant, "probabilities sum to")


def test_analytic_kl_breaks_the_order_of_bounds(monkeypatch):
    def plant():
        wrong = partial(test_latent.linear_gaussian, analytic_kl=True)
        monkeypatch.setattr(test_latent, "linear_gaussian", wrong)

    assert_caught(test_latent.test_bounds_are_ordered_and_tighten, plant)


@torch.no_grad()
def test_analytic_kl_forced_into_an_importance_average_beats_the_likelihood(monkeypatch):
    """By (1 - ln 2) / 2 nats for each of the two latent dimensions, with the exact and narrow posterior."""
    model, truth, _ = test_latent.linear_gaussian(scale=1e-4, analytic_kl=True)
    torch.manual_seed(0)
    x = model.sample(1)
    monkeypatch.setattr(importance_weighted, "require_weights", lambda score: None)
    bound = -importance_weighted.ImportanceWeighted(100_000)(model, (x, None), 0).value
    assert bound - truth.log_prob(x.flatten(1)).item() == pytest.approx(2 * (1 - log(2)) / 2, abs=0.01)


# --- state ---------------------------------------------------------------------------------------------------------------


def asks_again(monkeypatch) -> None:
    """Loading does not tell a layer that it is initialised."""
    monkeypatch.setattr(DataInitialized, "_mirror", lambda self: None)


def always_looks(monkeypatch) -> None:
    """A layer sets itself by every batch."""
    monkeypatch.setattr(ActNorm, "require_initialized", lambda self: setattr(self, "initializing", True))


@pytest.mark.parametrize("plant, message", [(asks_again, "initialised again"), (always_looks, "scoring changed")])
def test_initialised_again_after_loading(plant, message, monkeypatch):
    model = tiny("model=glow", shape=(1, 4, 4))

    @torch.no_grad()
    def law():
        check_reload(model, untrained("model=glow", shape=(1, 4, 4)))

    assert_caught(law, lambda: plant(monkeypatch), message)


def test_raw_weights_that_do_not_come_back():
    """Never restored; restored from an alias of what was overwritten; not restored after an error."""
    model = tiny("model=vae")
    check_swap(weights_of, model)

    def put(weights):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights[name])

    @contextlib.contextmanager
    def never(model, average):
        put(average)
        yield

    @contextlib.contextmanager
    def aliased(model, average):
        raw = {name: p.detach() for name, p in model.named_parameters()}
        put(average)
        yield
        put(raw)

    @contextlib.contextmanager
    def not_after_an_error(model, average):
        raw = {name: p.detach().clone() for name, p in model.named_parameters()}
        put(average)
        yield
        put(raw)

    for swap in (never, aliased, not_after_an_error):
        with pytest.raises(AssertionError, match="did not come back"):
            check_swap(swap, model)


def ignores_the_epoch(self, epoch):
    return torch.randperm(self.num_examples("train"), generator=generator("order", self.seed))


def goes_on_with_one_stream(self, epoch):
    """What a shuffling loader does: the order depends on how many epochs this process has seen."""
    self.stream = getattr(self, "stream", None) or generator("order", self.seed)
    return torch.randperm(self.num_examples("train"), generator=self.stream)


def ignores_the_seed(self, epoch):
    return torch.randperm(self.num_examples("train"), generator=generator("order", epoch))


def draws_with_replacement(self, epoch):
    count = self.num_examples("train")
    return torch.randint(count, (count,), generator=generator("order", self.seed, epoch))


@pytest.mark.parametrize(
    "rows, law",
    [
        (ignores_the_epoch, test_data.test_epochs_visit_each_example_once_in_new_orders),
        (draws_with_replacement, test_data.test_epochs_visit_each_example_once_in_new_orders),
        (goes_on_with_one_stream, test_data.test_order_is_a_function_of_seed_and_index),
        (ignores_the_seed, test_data.test_order_is_a_function_of_seed_and_index),
    ],
)
def test_wrong_order_of_data(rows, law, monkeypatch):
    assert_caught(law, lambda: monkeypatch.setattr(DataModule, "_rows", rows))


# --- coding ---------------------------------------------------------------------------------------------------------------


def shows_what_is_not_known(self, x, y):
    """The encoder has the whole image, so the net may as well be given it."""
    for (token, params), values in zip(self.walk(x, y, 0, 0), self._tokens(x), strict=True):
        yield values[:, 0], self.likelihood.log_pmf(params, token, 0)[..., 0, 0]


def stays_arranged(self, x, y):
    """What was decoded lies in the order of coding."""
    arranged = self.order.arrange(x, self.order.permutation(0), self.order.shape).contiguous()
    yield from shows_what_is_not_known(self, arranged, y)
    x.copy_(arranged.view_as(x))


@pytest.mark.parametrize(
    "walk, law",
    [
        (shows_what_is_not_known, test_compress.test_a_net_that_sees_the_future_is_shown_none),
        (stays_arranged, partial(test_compress.test_images_come_back_at_the_cost_of_their_score,
                                 (2, 3, 4), 2, Bernoulli, Column, test_compress.Linear, False)),
    ],
)  # fmt: skip
def test_wrong_walks_of_a_coder(walk, law, monkeypatch):
    assert_caught(law, lambda: monkeypatch.setattr(Autoregressive, "code_walk", walk))


def loses_ties(positive, negative):
    above, below = (sign * positive[:, None] > sign * negative for sign in (1, -1))
    error = (above.double().mean(1).var() / len(positive) + below.double().mean(0).var() / len(negative)) ** 0.5
    return float(above.double().mean()), float(error)


def keeps_the_last_batch(queries, batches, k):
    return nearest(queries, batches[-1:], k)


@pytest.mark.parametrize(
    "name, mistake, law",
    [
        ("auroc", loses_ties, lambda tests: tests.test_auroc_is_sklearns_and_its_error_delongs(0.0)),
        ("nearest", keeps_the_last_batch, lambda tests: tests.test_nearest_is_exact(256)),
    ],
)
def test_wrong_comparisons_of_two_sets(name, mistake, law, monkeypatch):
    tests = test_evaluators_autoregressive
    assert_caught(lambda: law(tests), lambda: monkeypatch.setattr(tests, name, mistake))


# --- masked convolutions --------------------------------------------------------------------------------------------------

MASKED = pytest.mark.parametrize("model", ["model=pixelcnn", "model=gated_pixelcnn"])
WIDE = ["model.net.width=24", "model.net.head_width=48"]


def shows_the_pixel_itself(monkeypatch) -> None:
    """Mask B in the first layer."""
    init = MaskedConv2d.__init__
    monkeypatch.setattr(MaskedConv2d, "__init__", lambda self, inputs, outputs, kernel, mask: init(self, inputs, outputs, kernel, "B"))


def shows_later_channels(monkeypatch) -> None:
    """Mask B lets the green features see the blue ones."""
    init = MaskedConv2d.__init__

    def swapped(self, inputs, outputs, kernel, mask):
        init(self, inputs, [min(owner + 1, 2) for owner in outputs] if mask == "B" else outputs, kernel, mask)

    monkeypatch.setattr(MaskedConv2d, "__init__", swapped)


@MASKED
@pytest.mark.parametrize("plant", [shows_the_pixel_itself, shows_later_channels])
def test_wrong_masks(model, plant, monkeypatch):
    with monkeypatch.context() as patch:
        law = lambda: check_causal(tiny(model, *WIDE, shape=(3, 2, 2)).net, (3, 2, 2), sees_all=False)  # noqa: E731
        assert_caught(law, lambda: plant(patch), "is not before it")
    law = partial(normalized, model, *WIDE, shape=(3, 1, 1), scale=0.3)
    assert_caught(law, lambda: plant(monkeypatch), "probabilities sum to")


def skips(cls, name, skipped):
    """A method that does nothing at the calls whose number or arguments ``skipped`` names."""

    def plant(monkeypatch):
        original, calls = getattr(cls, name), {}

        def stale(self, *args):
            calls[id(self)] = calls.get(id(self), 0) + 1
            return None if skipped(calls[id(self)], *args) else original(self, *args)

        monkeypatch.setattr(cls, name, stale)

    return plant


@MASKED
@pytest.mark.parametrize(
    "plant",
    [
        skips(masked_conv_cache.Spatial, "end_pixel", lambda call, column: column == 5),
        skips(masked_conv_cache.Spatial, "begin_pixel", lambda call, column: call == 7),
        skips(masked_conv_cache.Rows, "write", lambda call, row: call == 3),
    ],
    ids=["a pixel", "the pixels to the left", "a row"],
)
def test_a_stale_cache_of_masked_convolutions(model, plant, monkeypatch):
    net = tiny(model, *WIDE, shape=(1, 8, 8), levels=17).net
    reals = 2 * torch.rand(2, 1, 8, 8, dtype=torch.float64) - 1
    assert_caught(lambda: check_cache(net, reals), lambda: plant(monkeypatch), "not close")


def test_a_direction_from_the_right_that_stays_in_its_row(monkeypatch):
    """Not moved down, its states have seen what lies right of the pixel."""

    def law():
        check_causal(tiny("model=pixelrnn_diagonal", shape=(1, 4, 4)).net, (1, 4, 4), sees_all=False)

    with monkeypatch.context() as patch:
        assert_caught(law, lambda: patch.setattr(diagonal_lstm, "down_shift", lambda x: x), "is not before it")
    law = partial(normalized, "model=pixelrnn_diagonal", scale=0.5)
    assert_caught(law, lambda: monkeypatch.setattr(diagonal_lstm, "down_shift", lambda x: x), "probabilities sum to")


@pytest.mark.parametrize(
    "model, plant",
    [
        ("model=pixelrnn_row", skips(row_lstm.RowStates, "begin_row", lambda call, row: row == 3)),
        ("model=pixelrnn_row", skips(row_lstm.RowStates, "step", lambda call, *rest: call == 9)),
        ("model=pixelrnn_diagonal", skips(diagonal_lstm.DiagonalStates, "_run_from_the_right", lambda call: call == 3)),
        ("model=pixelrnn_diagonal", skips(diagonal_lstm.DiagonalStates, "end_pixel", lambda call, column: column == 3)),
        ("model=pixelrnn_diagonal", skips(diagonal_lstm.DiagonalStates, "step", lambda call, *rest: call == 9)),
        ("model=pixelrnn_diagonal", skips(pixelrnn.Cache, "_visit_margin", lambda call: call == 3)),
    ],
    ids=["the row above", "a state", "the other direction", "a pixel", "a state on the diagonal", "the margin"],
)
def test_a_stale_state(model, plant, monkeypatch):
    net = tiny(model, scale=0.3, shape=(1, 5, 5), levels=17).net
    reals = 2 * torch.rand(2, 1, 5, 5, dtype=torch.float64) - 1
    assert_caught(lambda: check_cache(net, reals), lambda: plant(monkeypatch), "not close")


# --- the transformer -----------------------------------------------------------------------------------------------------


def transformer_in_blocks():
    return tiny("model=image_transformer", "model.net.block=4", shape=(1, 16, 1), scale=0.3).net


def is_causal() -> None:
    check_causal(transformer_in_blocks(), (1, 16, 1), sees_all=False)


@pytest.mark.parametrize("law, message", [
    (is_causal, "is not before it"), (partial(normalized, "model=image_transformer", scale=0.3), "probabilities sum to"),
])  # fmt: skip
def test_a_transformer_that_forgets_the_shift(law, message, monkeypatch):
    assert_caught(law, lambda: monkeypatch.setattr(transformer, "shift", lambda values: values), message)


def test_attention_that_sees_the_rest_of_its_block(monkeypatch):
    original = CausalAttention.__init__

    def leaky(self, *sizes):
        original(self, *sizes)
        self.mask.fill_(True)

    assert_caught(is_causal, lambda: monkeypatch.setattr(CausalAttention, "__init__", leaky), "is not before it")


def keeps_an_old_key(memory, before, position):
    if position == 2:
        memory[0, :, 2] = memory[0, :, 1]


def forgets_to_move_a_block(memory, before, position):
    if position == 12:
        memory[:, :, :4] = before[:, :, :4]


@pytest.mark.parametrize("spoil", [keeps_an_old_key, forgets_to_move_a_block])
def test_a_stale_memory_of_keys(spoil, monkeypatch):
    step = CausalAttention.step

    def stale(self, x, memory, position):
        before = memory.clone()
        output = step(self, x, memory, position)
        spoil(memory, before, position)
        return output

    net, reals = transformer_in_blocks(), torch.randn(2, 1, 16, 1, dtype=torch.float64)
    assert_caught(lambda: check_cache(net, reals), lambda: monkeypatch.setattr(CausalAttention, "step", stale), "not close")


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
