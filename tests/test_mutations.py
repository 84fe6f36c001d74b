"""Mistakes planted into heads, bounds, the state of a run and coders: the laws find each."""

from __future__ import annotations

import contextlib
from functools import partial
from math import log

import pytest
import torch

from callbacks.ema import weights_of
from datamodules.base import DataModule
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Column
from models.build import ConfigError, instantiate
from models.contracts import Kind, Score
from models.evaluators.nearest import nearest
from models.latent.vae import VAE
from models.likelihoods import logistic
from models.likelihoods.bernoulli import Bernoulli
from models.nn.data_init import DataInitialized
from models.objectives import importance_weighted
from models.seeding import generator
from models.transforms.actnorm import ActNorm
from tests import test_compress, test_data, test_evaluators_autoregressive, test_latent, test_out_of_distribution
from tests.conftest import build_model, compose, shaped
from tests.laws import check_frequencies, check_reload, check_swap, random_batch, ready, tiny, untrained
from tests.mutations import assert_caught, normalized

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
    "name, mistake, tests, law",
    [
        ("auroc", loses_ties, test_out_of_distribution, lambda tests: tests.test_auroc_is_sklearns_and_its_error_delongs(0.0)),
        ("nearest", keeps_the_last_batch, test_evaluators_autoregressive, lambda tests: tests.test_nearest_is_exact(256)),
    ],
)
def test_wrong_comparisons_of_two_sets(name, mistake, tests, law, monkeypatch):
    assert_caught(lambda: law(tests), lambda: monkeypatch.setattr(tests, name, mistake))
