"""Evaluators on models small enough to know the answer, on one rank and on two."""

from __future__ import annotations

import json
from math import log
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

from datamodules.base import DataModule, Split
from models.build import ConfigError
from models.contracts import Bijection, CausalNet, DataSpec, GenerativeModel, Kind, Score, check_batch, sum_event
from models.evaluators.audit import Audit, crop
from models.evaluators.base import Context, Evaluator, Statistics, evaluate
from models.evaluators.baseline import Baseline
from models.evaluators.interpolate import Interpolate
from models.evaluators.nll import NLL
from models.evaluators.results import read_results, write_results
from models.evaluators.samples import Samples

SPEC = DataSpec((1, 2, 3), 4, classes=2)


class Tiny(DataModule):
    """Seven, five and three seeded images."""

    def load(self, split):
        random = torch.Generator().manual_seed(len(split))
        n = {"train": 7, "val": 3, "test": 5}[split]
        if self.spec.levels is None:
            return Split(torch.randn(n, *self.spec.shape, generator=random))
        x = torch.randint(0, self.spec.levels, (n, *self.spec.shape), generator=random).to(torch.uint8)
        return Split(x, None if self.spec.classes is None else torch.arange(n) % self.spec.classes)


class Table(GenerativeModel):
    """Independent pixels with one learned distribution, a score of any kind, and noise of scale ``noise``."""

    def __init__(self, spec=SPEC, kind=Kind.EXACT, noise=0.0, names=("data",)):
        super().__init__()
        self.spec, self.kind, self.noise, self.names = spec, kind, noise, names
        self.logits = nn.Parameter(torch.linspace(-1.0, 1.0, spec.levels))

    def score(self, x, y=None):
        check_batch(x, self.spec)
        nats = sum_event(self.logits.log_softmax(0)[x.long()])
        nats = nats + self.noise * torch.randn_like(nats)
        return Score(nats, self.kind, {name: nats / len(self.names) for name in self.names})

    def sample(self, n, y=None, temperature=1.0):
        p = (self.logits / temperature).softmax(0)
        return torch.multinomial(p, n * self.spec.dims, replacement=True).view(n, *self.spec.shape).to(torch.uint8)


def context(folder, model=None, rank=0, world=1, batch=2, **changes) -> Context:
    model = (model or Table()).eval()
    data = Tiny(spec=model.spec, name="tiny", root=".", seed=0, batch_size=2, eval_batch_size=batch, limit=None)
    return Context(model, data, "test", Path(folder), seed=1, weights="raw", rank=rank, world=world, **changes)


def by_metric(records):
    return {item["metric"]: item for item in records}


def test_nll_is_the_mean_over_all_examples(tmp_path):
    here = context(tmp_path)
    nats = here.model.score(here.datamodule.split("test").x).nats.detach().double().numpy()
    found = by_metric(NLL()(here))
    bpd = -nats / 6 / log(2)
    numpy.testing.assert_allclose(found["nll_nats"]["value"], -nats.mean(), rtol=1e-12)
    numpy.testing.assert_allclose(found["nll_bpd"]["value"], bpd.mean(), rtol=1e-12)
    numpy.testing.assert_allclose(found["nll_bpd"]["stderr"], bpd.std(ddof=1) / 5**0.5, rtol=1e-9)
    assert found["nll_bpd"]["count"] == 5 and found["nll_bpd"]["kind"] == "exact" and found["nll_bpd"]["unit"] == "bits/dim"
    numpy.testing.assert_allclose(found["nll_nats"]["terms"]["data"], nats.mean(), rtol=1e-12)


def test_rate_and_distortion_add_up(tmp_path):
    model = Table(kind=Kind.WEIGHT, noise=0.1, names=("data", "kl/0", "kl/1"))
    found = by_metric(NLL()(context(tmp_path, model)))
    assert found["nll_nats"]["kind"] == "bound"
    total = found["rate_nats"]["value"] + found["distortion_nats"]["value"]
    assert total == pytest.approx(found["nll_nats"]["value"], abs=1e-5)
    assert found["rate_nats"]["value"] == pytest.approx(2 * found["distortion_nats"]["value"], rel=1e-5)


def test_noise_repeats_and_leaves_the_streams_alone(tmp_path):
    model = Table(kind=Kind.NOISY, noise=1.0)
    torch.manual_seed(0)
    first = NLL()(context(tmp_path, model))
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))
    assert NLL()(context(tmp_path, model)) == first and first[0]["kind"] == "estimate"
    other = context(tmp_path, model)
    other.seed = 2
    assert NLL()(other)[0]["value"] != first[0]["value"]


def test_an_energy_has_no_nll(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluators=\[ais\]"):
        NLL()(context(tmp_path, Table(kind=Kind.UNNORMALIZED)))


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_what_is_not_finite_is_named_and_not_averaged_away(tmp_path, bad):
    class Broken(Table):
        def score(self, x, y=None):
            score = super().score(x, y)
            score.nats[sum_event(x == self.hated.to(x.dtype)) == 6] = bad
            return score

    model = Broken()
    here = context(tmp_path, model)
    model.hated = here.datamodule.split("test").x[3]
    found = NLL()(here)[0]
    assert found["value"] == float("inf") and found["stderr"] is None and found["count"] == 5
    assert found["non_finite"] == {"count": 1, "first": [{"example": 3, "nats": str(bad)}]}


def test_continuous_data_is_in_nats_only(tmp_path):
    class Normal(GenerativeModel):
        spec = DataSpec((1, 1, 2), None)

        def score(self, x, y=None):
            return Score(sum_event(torch.distributions.Normal(0.0, 1.0).log_prob(x)), Kind.EXACT)

    here = context(tmp_path, Normal())
    assert [item["metric"] for item in NLL()(here)] == ["nll_nats"]
    train, test = (here.datamodule.split(split).x.double().flatten(1).numpy() for split in ("train", "test"))
    mean, std = train.mean(0), train.std(0, ddof=1)
    expected = (0.5 * ((test - mean) / std) ** 2 + numpy.log(std) + 0.5 * log(2 * numpy.pi)).sum(1).mean()
    (found,) = Baseline()(here)
    assert found["metric"] == "independent_normal_nats" and found["value"] == pytest.approx(expected, rel=1e-12)


def test_baseline_counts_by_hand(tmp_path):
    here = context(tmp_path)
    train, test = (here.datamodule.split(split).x.flatten(1).numpy() for split in ("train", "test"))
    total = 0.0
    for image in test:
        for d, level in enumerate(image):
            total -= log(((train[:, d] == level).sum() + 1) / (len(train) + 4))
    (found,) = Baseline()(here)
    assert found["metric"] == "independent_pixel_bpd" and found["kind"] == "exact" and found["count"] == 5
    assert found["value"] == pytest.approx(total / 5 / 6 / log(2), rel=1e-12)


def test_statistics_of_large_numbers():
    statistics, values = Statistics(), 1e4 + torch.randn(1000)
    for start in range(0, 1000, 300):
        statistics.add(torch.arange(start, min(start + 300, 1000)), values[start : start + 300])
    assert statistics.mean == pytest.approx(values.double().mean().item(), rel=1e-12)
    assert statistics.stderr == pytest.approx(values.double().std().item() / 1000**0.5, rel=1e-6)


def test_results_are_merged(tmp_path):
    def item(value, **changes):
        same = {"metric": "m", "split": "test", "weights": "raw", "evaluator": "e", "settings": {"k": 1}}
        return same | {"value": value} | changes

    write_results(tmp_path, [item(1.0), item(2.0, settings={"k": 2}), item(3.0, split="val")])
    write_results(tmp_path, [item(4.0), item(5.0, weights="ema")])
    assert [r["value"] for r in read_results(tmp_path)] == [4.0, 2.0, 3.0, 5.0]
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        write_results(tmp_path, [item(6.0)])


def test_evaluate_completes_and_stores_records(tmp_path):
    here = context(tmp_path, about={"model": "table", "step": 7})
    records = evaluate(here, {"nll": NLL(), "baseline": Baseline(), "samples": Samples(4, [1.0, 0.5])})
    assert records == read_results(tmp_path)
    for name in ("metric", "value", "stderr", "unit", "kind", "split", "data", "data_sha256", "count", "weights", "model",
                 "seconds", "code", "versions", "evaluator", "settings", "step"):  # fmt: skip
        assert all(name in item for item in records), name
    assert records[0]["data_sha256"] == here.datamodule.checksum("test") and records[0]["model"] == "table"
    assert {"sha", "dirty"} == set(records[0]["code"]) and {"python", "torch", "lightning"} == set(records[0]["versions"])
    assert {p.name for p in (tmp_path / "samples").iterdir()} == {"raw_t1.png", "raw_t0.5.png"}


def test_an_evaluator_that_refuses_leaves_the_numbers_before_it(tmp_path):
    class Refusing(Evaluator):
        def __call__(self, context):
            raise ConfigError("no")

    with pytest.raises(ConfigError):
        evaluate(context(tmp_path), {"nll": NLL(), "other": Refusing()})
    assert [item["metric"] for item in read_results(tmp_path)] == ["nll_bpd", "nll_nats"]


def test_interpolation_ends_are_the_images(tmp_path, monkeypatch):
    class Identity(Table):
        def encode(self, x, y=None):
            return [x.float()]

        def decode(self, z, y=None):
            return z[0]

    pages = []
    keep = lambda images, spec, path, columns: pages.append((images, columns))  # noqa: E731
    monkeypatch.setattr("models.evaluators.interpolate.save_grid", keep)
    here = context(tmp_path, Identity())
    Interpolate(2)(here)
    x = here.datamodule.split("test").x
    assert torch.equal(pages[0][0], x[torch.arange(4) * len(x) // 4])
    here.split = "train"
    Interpolate(3)(here)
    images, columns = pages[1]
    assert columns == 3 and images.shape == (9, 1, 2, 3)
    x = here.datamodule.split("train").x.float()
    assert torch.equal(images[1].float(), ((x[0] + x[1]) / 2).round())
    with pytest.raises(ConfigError, match="no latents"):
        Interpolate(2)(context(tmp_path))
    with pytest.raises(ConfigError, match="num=2"):
        Interpolate(8)(context(tmp_path, Identity()))


# --- the audit, on sound and on broken models -----------------------------------------------------------------------


class Scale(Bijection):
    """z = x exp(s), with a log-det that is right unless ``sign`` is -1."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))
        self.sign = sign

    def forward(self, x, context=None):
        return x * self.log_scale.exp(), (self.sign * self.log_scale.sum() * x.shape[2]).expand(len(x))


class Scaled(Table):
    """A flow of one bijection."""

    def __init__(self, sign=1.0, **kwargs):
        super().__init__(**kwargs)
        self.bijection = Scale(sign)

    def score(self, x, y=None):
        z, log_det = self.bijection(x.to(self.logits.dtype))
        base = sum_event(torch.distributions.Normal(0.0, 1.0).log_prob(z))
        return Score(base + log_det, Kind.EXACT, {"base": base, "logdet/0": log_det})


class Running(CausalNet):
    """The sum of all pixels before each one; with ``leak`` the pixel itself too."""

    def __init__(self, leak):
        super().__init__()
        self.leak = leak

    def forward(self, x, y=None):
        total = x.flatten(2).cumsum(2)
        return (total if self.leak else total - x.flatten(2)).view_as(x)


class Causal(Table):
    def __init__(self, leak):
        super().__init__()
        self.net = Running(leak)

    def score(self, x, y=None):
        nats = -sum_event((x - self.net(x.to(self.logits.dtype))).abs())
        return Score(nats, Kind.EXACT, {"data": nats})


def audit(tmp_path, model):
    """Whether each check passed; None if it was skipped."""
    summary, *records = Audit(4, 64)(context(tmp_path, model))
    found = {item["metric"].removeprefix("audit_"): item["passed"] for item in records}
    assert summary["metric"] == "audit_failed" and summary["count"] == len(found)
    assert summary["value"] == sum(not passed for passed in found.values())
    return found | dict.fromkeys(summary["skipped"])


def test_audit_passes_sound_models(tmp_path):
    assert audit(tmp_path, Scaled()) == {
        "non_finite": True,
        "terms_error": True,
        "repeat_error": True,
        "round_trip_float32": None,
        "round_trip_float64": None,
        "log_det_error": True,
        "causality_error": None,
    }
    assert audit(tmp_path, Causal(leak=False))["causality_error"] is True
    assert audit(tmp_path, Table(kind=Kind.NOISY, noise=1.0))["repeat_error"] is True


def test_audit_fails_broken_models(tmp_path):
    assert audit(tmp_path, Scaled(sign=-1.0))["log_det_error"] is False
    assert audit(tmp_path, Causal(leak=True))["causality_error"] is False
    assert audit(tmp_path, Table(kind=Kind.EXACT, noise=1.0))["repeat_error"] is False

    class LosesATerm(Table):
        def score(self, x, y=None):
            score = super().score(x, y)
            return Score(score.nats + 1, score.kind, score.terms)

    class Infinite(Table):
        def score(self, x, y=None):
            score = super().score(x, y)
            return Score(score.nats / 0, score.kind, score.terms)

    assert audit(tmp_path, LosesATerm())["terms_error"] is False
    assert audit(tmp_path, Infinite())["non_finite"] is False


def test_audit_crops_what_is_too_large(tmp_path):
    wide = Scaled(spec=DataSpec((1, 8, 3), 4))
    skipped = Audit(2, 3)(context(tmp_path, wide))[0]["skipped"]
    assert skipped["log_det_error"] == "bijection: 24 dimensions are more than max_dims=3"
    assert crop(torch.arange(72.0).view(1, 1, 9, 8), 16).flatten().tolist()[:5] == [0.0, 1.0, 2.0, 3.0, 8.0]


# --- two ranks --------------------------------------------------------------------------------------------------------


def _rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    here = context(folder, Table(kind=Kind.NOISY, noise=1.0), rank=rank, world=2)
    records = evaluate(here, {"nll": NLL(), "baseline": Baseline()})
    Path(folder, f"rank{rank}.json").write_text(json.dumps(records))
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    """Five examples in batches of two: three batches on two ranks, nothing counted twice."""
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    (tmp_path / "alone").mkdir()
    alone = evaluate(context(tmp_path / "alone", Table(kind=Kind.NOISY, noise=1.0)), {"nll": NLL(), "baseline": Baseline()})
    for one, two, expected in zip(first, second, alone, strict=True):
        assert one["count"] == two["count"] == expected["count"] == 5
        assert one["value"] == two["value"] == pytest.approx(expected["value"], rel=1e-12)
        assert one["stderr"] == pytest.approx(expected["stderr"], rel=1e-9)
    assert read_results(tmp_path) == first
