"""Evaluators that keep numbers honest: log-determinants against higher precision, and the worst examples."""

from __future__ import annotations

from math import inf, log

import pytest
import torch

from models.build import ConfigError
from models.contracts import Bijection, Kind, sum_event
from models.distributions.bases import StandardNormal
from models.evaluators.log_det import LogDet
from models.evaluators.worst import Worst
from models.flow.flow import Flow
from models.transforms.dequantize import UniformDequantization
from tests.test_evaluators import SPEC, Table, context


class Cube(Bijection):
    """z = x^3 + x; in float32 its log-det is ``error`` too large for each number, and ``wrong`` in any type."""

    def __init__(self, error, wrong=0.0):
        super().__init__()
        self.error, self.wrong = error, wrong

    def forward(self, x, context=None):
        slip = self.error if x.dtype == torch.float32 else 0.0
        return x**3 + x, sum_event((3 * x * x + 1).log() + slip + self.wrong)


def cubes(*errors, wrong=0.0, kind=Kind.EXACT):
    transforms = [Cube(error, wrong) for error in errors]
    transforms[0].kind = kind
    return Flow(SPEC, UniformDequantization(SPEC.levels), None, lambda shape: (transforms, shape), StandardNormal, False)


def found(evaluator, *arguments, **options):
    return {item["metric"]: item for item in evaluator(context(*arguments, **options))}


def test_log_dets_in_float32(tmp_path):
    """Six numbers an image: errors of 6 e-3 and -18 e-3 nats leave 12 e-3, and float32's own 1e-6."""
    records = found(LogDet(None, 256), tmp_path, cubes(1e-3, -3e-3))
    assert records["log_det_float32_nats"]["value"] == pytest.approx(12e-3, abs=1e-5)
    assert records["log_det_float32_nats"]["worst"] == "transforms.1"
    assert records["log_det_float32_nats"]["count"] == 5
    assert records["log_det_float32_mean_nats"]["value"] == pytest.approx(-12e-3, abs=1e-5)
    assert records["log_det_float32_mean_bpd"]["value"] == pytest.approx(-2e-3 / log(2), abs=1e-5)
    assert records["log_det_autograd_error"]["value"] < 1e-10
    assert found(LogDet(3, 256), tmp_path, cubes(0.0))["log_det_float32_nats"]["value"] < 1e-5


def test_log_dets_against_autograd(tmp_path):
    record = found(LogDet(None, 256), tmp_path, cubes(0.0, wrong=0.1))["log_det_autograd_error"]
    assert record["value"] > 0.01 and "skipped" not in record
    record = found(LogDet(None, 4), tmp_path, cubes(0.0, wrong=0.1))["log_det_autograd_error"]
    assert record["value"] > 0.01, "a corner shows it as well"


def test_log_dets_are_shared_among_ranks(tmp_path, monkeypatch):
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("models.evaluators.base.Context.gather", lambda self, item: parts.append(item) or [item])
        LogDet(None, 256)(context(tmp_path, cubes(1e-3), rank=rank, world=2))
    assert sum(len(part) for rank in parts for part in rank) == 5


def test_log_det_is_refused_where_it_says_nothing(tmp_path):
    with pytest.raises(ConfigError, match="no flow over the data"):
        LogDet(None, 256)(context(tmp_path))
    with pytest.raises(ConfigError, match="draws noise"):
        LogDet(None, 256)(context(tmp_path, cubes(0.0, kind=Kind.WEIGHT)))


class Explodes(Table):
    """The first of each batch has a score of ``nats``."""

    def __init__(self, nats, **options):
        super().__init__(**options)
        self.unlikely = nats

    def score(self, x, y=None):
        score = super().score(x, y)
        score.nats[0] = self.unlikely
        return score


def test_worst_examples_are_listed_beside_the_mean(tmp_path):
    """Batches of two of five: examples 0, 2 and 4 cost 600 nats."""
    model = Explodes(-600.0)
    record = found(Worst(4, 2), tmp_path, model)["worst_bpd"]
    assert record["value"] == pytest.approx(600 / 6 / log(2)) and record["count"] == 5 and record["kind"] == "exact"
    assert [item["example"] for item in record["examples"][:3]] == [0, 2, 4]
    assert [item["bpd"] for item in record["examples"]] == sorted((item["bpd"] for item in record["examples"]), reverse=True)
    assert record["mean"] > 0.6 * record["value"] and record["quantiles"]["0.5"] == pytest.approx(record["value"])
    assert (tmp_path / "samples/worst_test_raw.png").stat().st_size > 0


def test_a_score_that_is_not_finite_is_the_worst(tmp_path):
    record = found(Worst(2, 2), tmp_path, Explodes(float("nan")))["worst_bpd"]
    assert record["value"] == record["mean"] == inf and record["examples"][0]["example"] == 0


def test_worst_of_an_energy_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="energy"):
        Worst(2, 2)(context(tmp_path, Table(kind=Kind.UNNORMALIZED)))
