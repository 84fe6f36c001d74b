"""The ELBO and importance-weighted objectives, and the importance-weighted and reconstruction evaluators."""

from __future__ import annotations

from math import log, sqrt
from pathlib import Path

import pytest
import torch

from datamodules.base import DataModule, Split
from models.build import ConfigError
from models.contracts import DataSpec, GenerativeModel, Kind, Score
from models.evaluators.base import Context
from models.evaluators.importance_weighted import ImportanceWeighted as Evaluate
from models.evaluators.reconstruct import Reconstruct
from models.objectives.elbo import ELBO
from models.objectives.importance_weighted import ImportanceWeighted
from models.units import bits_per_dim

SPEC = DataSpec((1, 1, 2), 4)
X = torch.tensor([[0, 1], [2, 3], [3, 3]], dtype=torch.uint8).view(3, 1, 1, 2)


class Fixed(GenerativeModel):
    """Two latent groups whose rates are parameters; with ``noise`` the data term is log-normal weight noise of mean 1."""

    def __init__(self, kind=Kind.WEIGHT, noise=0.0):
        super().__init__()
        self.spec, self.kind, self.noise = SPEC, kind, noise
        self.rates = torch.nn.Parameter(torch.tensor([0.5, 3.0]))

    def score(self, x, y=None):
        noise = self.noise * torch.randn(len(x)) - self.noise**2 / 2
        rates = {f"kl/{group}": -rate.expand(len(x)) for group, rate in enumerate(self.rates)}
        terms = {"data": -x.flatten(1).sum(1) + noise, **rates}
        return Score(sum(terms.values()), self.kind, terms)


class Mirror(Fixed):
    """Reconstructs every image as its negative."""

    def reconstruct(self, x, y=None):
        return 3.0 - x


class Three(DataModule):
    def load(self, split):
        return Split(X, None)


def context(folder, model, batch=2) -> Context:
    data = Three(spec=SPEC, name="three", root=".", seed=0, batch_size=2, eval_batch_size=batch, limit=None)
    return Context(model.eval(), data, "test", Path(folder), seed=1, weights="raw")


def test_elbo_terms_and_logs():
    """distortion = mean of -data = 4, rate = 0.5 + 3; logs are the bound itself, detached."""
    loss = ELBO(beta=2.0, free_nats=0.0, warmup_steps=0, warmup_start=0.0)(Fixed(), (X, None), 0)
    assert loss.value.item() == pytest.approx(4 + 2 * 3.5)
    values = {name: value.item() for name, value in loss.log.items()}
    assert values == pytest.approx(
        {"elbo_nats": -7.5, "rate_nats": 3.5, "distortion_nats": 4.0, "nll_bpd": float(bits_per_dim(torch.tensor(-7.5), 2))}
    )
    assert not any(value.requires_grad for value in loss.log.values())


def test_warmup_rises_linearly_from_its_start():
    objective = ELBO(beta=2.0, free_nats=0.0, warmup_steps=10, warmup_start=0.01)
    assert [objective.kl_weight(s) for s in (0, 5, 10, 99)] == pytest.approx([0.02, 1.01, 2.0, 2.0])
    assert objective(Fixed(), (X, None), 5).value.item() == pytest.approx(4 + 1.01 * 3.5)


def test_free_nats_hold_per_group():
    """max(1, 0.5) + max(1, 3): the first group's rate gets no gradient, the second's a full one, the log is the true rate."""
    model = Fixed()
    loss = ELBO(beta=1.0, free_nats=1.0, warmup_steps=0, warmup_start=0.0)(model, (X, None), 0)
    assert loss.value.item() == pytest.approx(4 + 1 + 3)
    assert loss.log["rate_nats"].item() == pytest.approx(3.5)
    loss.value.backward()
    torch.testing.assert_close(model.rates.grad, torch.tensor([0.0, 1.0]))


def test_importance_weighted_with_one_draw_is_the_elbo():
    values, gradients = [], []
    for objective in (ELBO(1.0, 0.0, 0, 0.0), ImportanceWeighted(1)):
        model = Fixed(noise=0.7)
        torch.manual_seed(0)
        loss = objective(model, (X, None), 0)
        loss.value.backward()
        values.append(loss.value.detach())
        gradients.append(model.rates.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def test_importance_weighted_objective_value():
    torch.manual_seed(0)
    loss = ImportanceWeighted(6)(Fixed(noise=0.7), (X, None), 0)
    torch.manual_seed(0)
    nats = Fixed(noise=0.7).score(X.repeat_interleave(6, 0)).nats.view(3, 6)
    expected = nats.exp().mean(1).log().mean()
    torch.testing.assert_close(loss.value, -expected)
    torch.testing.assert_close(loss.log["iw_elbo_nats"], expected.detach())


@pytest.mark.parametrize("kind", [Kind.LOWER, Kind.NOISY, Kind.UNNORMALIZED, Kind.WEIGHT | Kind.LOWER])
def test_kinds_that_may_not_be_averaged_are_refused(kind, tmp_path):
    with pytest.raises(ConfigError, match="E\\[exp nats\\]"):
        ImportanceWeighted(2)(Fixed(kind), (X, None), 0)
    with pytest.raises(ConfigError, match="E\\[exp nats\\]"):
        Evaluate(k=4, chunk=4)(context(tmp_path, Fixed(kind)))


@pytest.mark.parametrize("k, chunk", [(1, None), (7, 3), (7, 1), (4, 100)])
def test_evaluator_counts_each_example_and_each_draw_once(k, chunk, tmp_path):
    """Constant weights: the value is exact, whatever the pieces; stderr is over the three examples."""
    records = {r["metric"]: r for r in Evaluate(k, chunk)(context(tmp_path, Fixed()))}
    sums = torch.tensor([1.0, 5.0, 6.0])
    assert records["iw_nll_nats"]["value"] == pytest.approx(4 + 3.5)
    assert records["iw_nll_nats"]["stderr"] == pytest.approx(sums.std().item() / sqrt(3))
    assert records["iw_nll_nats"]["count"] == 3 and records["iw_nll_nats"]["kind"] == "bound"
    assert records["iw_nll_bpd"]["value"] == pytest.approx(7.5 / 2 / log(2))
    assert records["iw_nll_bpd"]["unit"] == "bits/dim"


def test_evaluator_streams_the_average_of_weights(tmp_path):
    """With noisy weights of mean one: k = 4000 in chunks of 37 comes within 5 standard errors of the truth, k = 1 does not."""
    noise, k = 1.0, 4000
    error = sqrt((torch.e**noise**2 - 1) / k / 3)
    value = Evaluate(k, 37)(context(tmp_path, Fixed(noise=noise)))[0]["value"]
    assert abs(value - 7.5) < 5 * error
    single = [Evaluate(1, None)(context(tmp_path, Fixed(noise=noise)))[0]["value"] for _ in range(2)]
    assert single[0] == single[1], "noise is keyed: the same number again"


def test_reconstructions_are_drawn_below_their_images(tmp_path):
    from PIL import Image

    assert Reconstruct(num=3, columns=2)(context(tmp_path, Mirror())) == []
    assert Image.open(tmp_path / "samples/reconstruct_test_raw.png").size[1] > 0
    with pytest.raises(ConfigError, match="no reconstructions"):
        Reconstruct(num=3, columns=2)(context(tmp_path, Fixed()))
