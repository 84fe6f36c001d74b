"""Out-of-distribution scores: AUROC against scikit-learn, and the known failure of likelihood, which is shown."""

from __future__ import annotations

from math import erf, log

import numpy
import pytest
import torch
from sklearn.metrics import roc_auc_score

from datamodules.digits import Digits
from models.contracts import Kind
from models.evaluators.base import evenly_spaced
from models.evaluators.out_of_distribution import OutOfDistribution, auroc
from models.table import format_records
from tests.evaluator_cases import Histograms, Inverted, beside, by_metric, digits, other


@pytest.mark.parametrize("shift", [-0.7, 0.0, 2.0])
def test_auroc_is_sklearns_and_its_error_delongs(shift):
    random = numpy.random.default_rng(0)
    a, b = (random.normal(shift, 1, 40).round(1), random.normal(0, 1.5, 70).round(1))
    value, error = auroc(torch.from_numpy(a), torch.from_numpy(b))
    assert value == pytest.approx(roc_auc_score([1] * 40 + [0] * 70, [*a, *b]), rel=1e-12)
    wins = (a[:, None] > b).astype(float) + 0.5 * (a[:, None] == b)
    variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 70
    assert error == pytest.approx(variance**0.5, rel=1e-12)


def test_auroc_by_hand_and_of_normals():
    assert auroc(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0]))[0] == 3.5 / 4
    assert auroc(torch.tensor([torch.nan, 1.0]), torch.tensor([-torch.inf, 0.0]))[0] == pytest.approx((0.5 + 2) / 4)
    assert auroc(torch.tensor([1.0]), torch.tensor([0.0])) == (1.0, None)
    found = []
    for seed in range(300):
        random = torch.Generator().manual_seed(seed)
        found.append(auroc(1 + torch.randn(40, generator=random), torch.randn(60, generator=random)))
    values, errors = numpy.array(found).T
    assert values.mean() == pytest.approx(0.5 * (1 + erf(0.5)), abs=4 * values.std() / 300**0.5), "Phi(1 / sqrt(2))"
    assert errors.mean() == pytest.approx(values.std(), rel=0.1)


def test_digits_are_told_from_inverted_digits_and_the_failure_is_shown(tmp_path, monkeypatch):
    titles = []
    keep = lambda sets, path, xlabel, title: titles.append(title)
    monkeypatch.setattr("models.evaluators.out_of_distribution.save_histograms", keep)
    evaluator = OutOfDistribution(other(Inverted), None)
    here = beside(tmp_path)
    found = by_metric(evaluator(here))
    model, mine, theirs = Histograms(), here.datamodule.split("test").x, digits(Digits, ".").split("test").x
    assert len(theirs) == 100
    theirs = digits(Inverted, ".")
    theirs.limit = None
    nats = [model(x).nats.numpy() for x in (mine, theirs.split("test").x)]
    expected = roc_auc_score([1] * 100 + [0] * 360, numpy.concatenate(nats))
    assert found["ood_auroc"]["value"] == pytest.approx(expected, rel=1e-12) and expected > 0.99
    assert found["ood_auroc"]["count"] == 460 and found["ood_auroc"]["kind"] == "estimate"
    assert found["ood_data_bpd"]["value"] == pytest.approx(-nats[0].mean() / 64 / log(2), rel=1e-12)
    assert found["ood_other_bpd"]["value"] == pytest.approx(-nats[1].mean() / 64 / log(2), rel=1e-12)
    assert found["ood_other_bpd"]["kind"] == "exact" and found["ood_other_bpd"]["count"] == 360
    assert evaluator.settings() == {"num": None, "other": "inverted"}
    for item in found.values():
        assert item["other"] == "inverted" and item["other_sha256"] == theirs.checksum("test")

    fooled = by_metric(OutOfDistribution(other(Digits), 50)(beside(tmp_path, Inverted)))
    assert fooled["ood_auroc"]["value"] < 0.01 and fooled["ood_auroc"]["count"] == 100, "a model of other data prefers those"
    assert titles == [f"AUROC {expected:.3f}", f"AUROC {fooled['ood_auroc']['value']:.3f}: the other data are likelier"]
    assert "ood_auroc (other=inverted)" in format_records([found["ood_auroc"] | {"settings": evaluator.settings()}])


def test_the_other_data_lies_where_the_runs_data_lies(tmp_path):
    roots = []

    class Noted(Inverted):
        def load(self, split):
            roots.append(str(self.root))
            return super().load(split)

    OutOfDistribution(other(Noted, limit=10), None)(beside(tmp_path / "here"))
    assert roots == [str(tmp_path / "here")]


def test_energies_are_told_apart_in_nats(tmp_path):
    found = by_metric(OutOfDistribution(other(Inverted), 20)(beside(tmp_path, model=Histograms(Kind.UNNORMALIZED))))
    assert found["ood_auroc"]["value"] > 0.99
    assert found["ood_other_nats"]["unit"] == "nats" and found["ood_other_nats"]["kind"] == "unnormalized"
    assert found["ood_other_nats"]["value"] > found["ood_data_nats"]["value"] > 0


def test_examples_are_spread_over_a_sorted_set():
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert evenly_spaced(3, 8).tolist() == evenly_spaced(3, None).tolist() == [0, 1, 2]
