"""Completions, nearest training images and cost maps, against what is known of each, and what evaluators refuse."""

from __future__ import annotations

import inspect
import json
from functools import partial
from math import log
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from hydra.errors import HydraException
from hydra.utils import get_class
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from datamodules.base import DataModule, Split
from models.autoregressive.model import Autoregressive
from models.autoregressive.orders import Column, Random, Raster
from models.build import ConfigError
from models.compose import explain
from models.contracts import DataSpec, GenerativeModel
from models.evaluators.complete import Complete
from models.evaluators.cost_map import CostMap
from models.evaluators.nearest import Nearest, median, nearest
from models.evaluators.nll import NLL
from models.evaluators.out_of_distribution import OutOfDistribution
from models.evaluators.samples import Samples
from models.likelihoods.gaussian import Gaussian
from models.pictures import GAP, HIDDEN, heat, rgb, save_histograms, save_labelled
from models.run import run
from tests.conftest import ROOT, compose, run_program
from tests.evaluator_cases import SPEC, Inverted, Places, Seeded, beside, by_metric, context, other, places


@pytest.fixture
def pages(monkeypatch) -> dict[str, tuple]:
    """What the evaluators draw, by file name: (colours, titles, captions)."""
    drawn = {}

    def keep(images, path, titles, captions=None, **_):
        drawn[path.name] = images, titles, captions

    for name in ("complete", "cost_map", "nearest"):
        monkeypatch.setattr(f"models.evaluators.{name}.save_labelled", keep)
    return drawn


# --- completions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [Raster, Column, partial(Random, seed=3)])
def test_completions_keep_what_is_given(order, tmp_path, pages):
    model = places(order)
    assert Complete(7, 0.5, 3, 1.0, 1.0)(context(tmp_path, model)) == []
    images, titles, _ = pages["complete_test_raw.png"]
    assert titles == ["original", "given", "completions", "", ""] and images.shape == (35, 3, 4, 6)
    original, given, *drawn = images.unflatten(0, (7, 5)).unbind(1)
    x = context(tmp_path, model).datamodule.split("test").x
    x = x[torch.arange(7) * len(x) // 7]
    assert torch.equal(original, rgb(x, 5))
    hidden = (given == torch.tensor(HIDDEN).view(3, 1, 1)).all(1)
    assert (hidden == hidden[0]).all() and hidden[0].sum() == 12
    first = model.order.permutation(0)
    first = torch.arange(24) if first is None else first
    assert not hidden[0].flatten()[first[:12]].any(), "the first half of the order is given"
    for image in (given, *drawn):
        assert torch.equal(image[~hidden.unsqueeze(1).expand_as(image)], original[~hidden.unsqueeze(1).expand_as(image)])
    assert len({image.numpy().tobytes() for image in drawn}) == 3


def test_half_of_an_image_is_its_upper_or_its_left_half(tmp_path, pages):
    tinted = {}
    for order in (Raster, Column):
        Complete(1, 0.5, 1, 1.0, 1.0)(context(tmp_path, places(order)))
        tinted[order] = (pages["complete_test_raw.png"][0][1] == torch.tensor(HIDDEN).view(3, 1, 1)).all(0)
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    assert torch.equal(tinted[Raster], rows >= 2) and torch.equal(tinted[Column], columns >= 3)


def test_hidden_pixels_of_any_number_of_channels():
    x = torch.arange(2 * 2 * 3).view(1, 2, 2, 3)
    assert torch.equal(rgb(x, 256)[0, 0], torch.cat([x[0, 0], x[0, 1]], 1)), "two channels stand side by side"
    order = Raster(DataSpec((2, 2, 3), 256), 1, False)
    hidden = Complete._hidden(order, 4, x)
    assert hidden.shape == (1, 3, 2, 6) and hidden[0, 0].tolist() == [[False] * 6, [False, True, True] * 2]


# --- nearest training images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [2, 256])
def test_nearest_is_exact(levels):
    """On images with many ties, too: of equally near ones the first."""
    random = torch.Generator().manual_seed(0)
    train = torch.randint(levels, (50, 3, 2, 2), generator=random).to(torch.uint8)
    queries = torch.cat([torch.randint(levels, (9, 3, 2, 2), generator=random).to(torch.uint8), train[-1:]])
    batches = [(torch.arange(start, min(start + 7, 50)), train[start : start + 7]) for start in range(0, 50, 7)]
    squared, which = nearest(queries, batches, 4)
    q, t = (x.flatten(1).numpy().astype(numpy.int64) for x in (queries, train))
    every = ((q[:, None] - t[None]) ** 2).sum(2)
    expected = numpy.argsort(every, 1, kind="stable")[:, :4]
    assert numpy.array_equal(which.numpy(), expected)
    assert numpy.array_equal(squared.numpy(), numpy.take_along_axis(every, expected, 1)) and squared[-1, 0] == 0
    reference = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(t).kneighbors(q)[0]
    numpy.testing.assert_allclose(squared.sqrt().numpy(), reference, rtol=1e-12, atol=1e-12)
    assert nearest(queries, batches[:1], 60)[1].shape == (10, 7), "all, where there are fewer"


class Memory(GenerativeModel):
    """Draws training images, every second one with its first pixel changed."""

    spec = SPEC

    def __init__(self, train):
        super().__init__()
        self.train_images = train

    def sample(self, n, y=None, temperature=1.0):
        assert y.tolist() == [i % 2 for i in range(n)]
        x = self.train_images[:n].clone()
        x[1::2, :, 0, 0] = (x[1::2, :, 0, 0] + 1) % 5
        return x


def test_memorised_samples_are_told(tmp_path, pages):
    train, test = (context(tmp_path, places()).datamodule.split(split).x for split in ("train", "test"))
    found = by_metric(Nearest(10, 3, 4)(context(tmp_path, Memory(train))))
    chosen = numpy.arange(10) * 23 // 10
    apart = test[chosen].flatten(1).numpy().astype(float)[:, None] - train.flatten(1).numpy()
    closest = numpy.sqrt((apart**2).mean(2)).min(1)
    assert found["nearest_data_levels"]["value"] == pytest.approx(numpy.median(closest), rel=1e-12)
    assert found["nearest_copies"]["value"] == 0.5 and found["nearest_copies"]["held_out"] == 0.1
    assert found["nearest_copies"]["stderr"] == pytest.approx((0.25 / 10) ** 0.5)
    assert found["nearest_sample_levels"]["value"] < 0.5 * found["nearest_data_levels"]["value"]
    images, titles, captions = pages["nearest_test_raw.png"]
    assert len(titles) == 4 and captions[:2] == ["", "0.00"]
    rows = images.unflatten(0, (4, 4))
    assert torch.equal(rows[:, 0], rows[:, 1]), "the copies come first, each beside what it copies"


def test_the_error_of_a_median():
    """Of n normal numbers it is sqrt(pi / 2 / n), asymptotically."""
    errors = [median(torch.randn(400, generator=torch.Generator().manual_seed(i)).double())[1] for i in range(200)]
    assert numpy.mean(errors) == pytest.approx((numpy.pi / 2 / 400) ** 0.5, rel=0.05)
    assert median(torch.tensor([3.0])) == (3.0, None)


# --- cost maps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [Raster, Column, partial(Random, seed=3)])
def test_the_cost_of_every_place(order, tmp_path, pages):
    model = places(order)
    here = context(tmp_path, model)
    (found,) = CostMap(5)(here)
    x = here.datamodule.split("test").x
    logits = model.net.logits[0].detach().double().numpy()
    nats = numpy.log(numpy.exp(logits).sum(0)) - numpy.take_along_axis(logits[None], x.numpy().astype(int), 1)[:, 0]
    cost = nats / log(2)
    nll = by_metric(NLL()(here))["nll_bpd"]
    assert found["metric"] == "cost_map_bpd" and found["kind"] == nll["kind"] == "exact" and found["count"] == 23
    assert found["value"] == pytest.approx(cost.mean(0).sum() / 24, rel=1e-6) == pytest.approx(nll["value"], rel=1e-6)
    assert found["stderr"] == pytest.approx(nll["stderr"], rel=1e-5)
    assert found["lowest"] == pytest.approx(cost.mean(0).min(), rel=1e-6)
    assert found["highest"] == pytest.approx(cost.mean(0).max(), rel=1e-6)
    mean = pages["cost_map_test_raw.png"][0]
    assert torch.equal(mean, heat(torch.from_numpy(cost.mean(0, keepdims=True)), 0.0, cost.mean(0).max()))
    images, titles, captions = pages["cost_images_test_raw.png"]
    shown = torch.arange(5) * len(x) // 5
    assert len(titles) == 6 and torch.equal(images[::2], rgb(x[shown], 5))
    assert captions[1::2] == [f"{c.sum():.0f} bits" for c in cost[shown.numpy()]]


class Points(DataModule):
    """Standard normal numbers."""

    def load(self, split):
        return Split(torch.randn(6, *self.spec.shape, generator=torch.Generator().manual_seed(0)))


def test_the_cost_of_continuous_data_is_in_nats(tmp_path, pages):
    spec = DataSpec((1, 4, 6), None)
    model = Autoregressive(spec, Places, Column(spec, 1, False), Gaussian(spec, min_log_scale=-7.0), conditional=False)
    here = context(tmp_path, model, Points)
    (found,) = CostMap(5)(here)
    mean, log_scale = model.net.logits[0].detach().double()
    cost = -torch.distributions.Normal(mean, log_scale.exp()).log_prob(here.datamodule.split("test").x[:, 0].double())
    assert found["metric"] == "cost_map_nats" and found["unit"] == "nats" and found["count"] == 6
    assert found["value"] == pytest.approx(float(cost.sum((1, 2)).mean()), rel=1e-5)
    assert found["lowest"] == pytest.approx(float(cost.mean(0).min()), rel=1e-4)
    assert list(pages) == ["cost_map_test_raw.png"]


# --- what cannot be asked ---------------------------------------------------------------------------------------------


class Mute(GenerativeModel):
    """A model that only samples."""

    spec = DataSpec((1, 8, 8), 17, 10)

    def sample(self, n, y=None, temperature=1.0):
        return torch.zeros(n, 1, 8, 8, dtype=torch.uint8)

    def score(self, x, y=None):
        raise ValueError("this model is class-conditional: give it labels y")


@pytest.mark.parametrize(
    "evaluator, message",
    [
        (Complete(2, 0.5, 2, 1.0, 1.0), "completes no images: take complete out"),
        (CostMap(2), "no parts by pixel: take cost_map out"),
        (Samples(2, [1.0], 0.9), "samples.top_p=1"),
        (OutOfDistribution(other(Inverted), None), "without labels, and this model is class-conditional"),
        (OutOfDistribution(other(Inverted, DataSpec((1, 9, 8), 17)), None), r"\(1, 9, 8\) of 17 levels.*data@other"),
        (OutOfDistribution(other(Seeded, DataSpec((1, 8, 8), 256)), None), r"of 256 levels.*\(1, 8, 8\) of 17"),
    ],
)
def test_questions_a_model_does_not_answer(evaluator, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        evaluator(beside(tmp_path, model=Mute()))
    assert "\n" not in str(caught.value)


def test_questions_the_data_do_not_answer(tmp_path):
    with pytest.raises(ConfigError, match="split=test or split=val"):
        Nearest(2, 2, 2)(context(tmp_path, places(), split="train"))
    with pytest.raises(ConfigError, match="not trained on"):
        Nearest(2, 2, 2)(context(tmp_path, places(), split="val"))
    with pytest.raises(ConfigError, match="no examples in split=val"):
        CostMap(2)(context(tmp_path, places(), split="val"))
    empty = context(tmp_path, places(), split="val")
    with pytest.raises(ConfigError, match="no examples in split=val"):
        OutOfDistribution(other(Seeded, SPEC), None)(empty)
    model = places()
    model.spec = DataSpec((1, 4, 6), None)
    for evaluator in (Complete(2, 0.5, 2, 1.0, 1.0), Nearest(2, 2, 2)):
        with pytest.raises(ConfigError, match="out of evaluators"):
            evaluator(context(tmp_path, model))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Complete(2, 1.0, 2, 1.0, 1.0),
        lambda: Complete(2, 0.5, 0, 1.0, 1.0),
        lambda: Nearest(0, 2, 2),
        lambda: CostMap(0),
        lambda: OutOfDistribution(other(Inverted), 1),
        lambda: Samples(2, [1.0], 0.0),
    ],
)
def test_settings_without_sense(make):
    with pytest.raises(ValueError, match="at least|above 0"):
        make()


@pytest.mark.parametrize("name", ["complete", "nearest", "cost_map", "out_of_distribution", "samples"])
def test_the_configuration_states_every_setting(name):
    node = dict(yaml.safe_load((ROOT / f"conf/evaluators/{name}.yaml").read_text())["evaluators"][name])
    assert set(inspect.signature(get_class(node.pop("_target_"))).parameters) == set(node)


# --- pictures, top-p, ranks, the command ------------------------------------------------------------------------------


def test_tiles_titles_captions_and_the_scale_have_their_places(tmp_path):
    images = torch.full((6, 3, 8, 8), 200, dtype=torch.uint8)
    save_labelled(images, tmp_path / "a.png", ["first", "others", ""])
    page = numpy.asarray(Image.open(tmp_path / "a.png"))
    assert page.shape == (18 + 2 * 64 + GAP, 3 * 64 + 2 * GAP + 10, 4)
    tiles = (page == [200, 200, 200, 255]).all(2)
    assert tiles.sum() == 6 * 64 * 64 and tiles[18:, :64].sum() == 2 * 64 * 64
    assert not page[18:, 64 : 64 + GAP + 10].any() and not page[18:, 142 : 142 + GAP].any(), "a group is set apart"
    assert page[:18, :60, 3].any() and page[:18, 78:120, 3].any(), "titles"
    save_labelled(images, tmp_path / "b.png", ["x", "", ""], ["", "", "7", "", "", ""], bar=(0.0, 2.0, "2 bits"))
    page = numpy.asarray(Image.open(tmp_path / "b.png"))
    assert page[18 + 64 : 18 + 64 + 18, 136:, 3].any() and not page[18 + 64 : 18 + 64 + 18, :136].any(), "the caption of image 2"
    ramp = page[-30:-20, :, :3].astype(int)
    assert (ramp[:, 0] <= 4).all() and (ramp[:, 199] >= 190).all() and (numpy.diff(ramp.sum(2), axis=1) >= -3).all()


def test_heat_is_dark_below_and_bright_above():
    colours = heat(torch.tensor([[[-1.0, 0.0, 0.5, 1.0, torch.inf]]]), 0.0, 1.0)[0, :, 0].T.tolist()
    assert colours[0] == colours[1] == [0, 0, 3] and colours[3] == colours[4] == [251, 252, 191] and colours[2] == [182, 54, 121]


def test_histograms_keep_what_is_not_finite(tmp_path):
    sets = {"a": torch.randn(50).double(), "b": torch.tensor([torch.nan, torch.inf, 0.0])}
    save_histograms(sets, tmp_path / "h.png", "bits/dim", "AUROC")
    assert Image.open(tmp_path / "h.png").size == (516, 336)


def test_top_p_of_almost_nothing_draws_the_likeliest_levels(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr("models.evaluators.samples.save_grid", lambda images, spec, path: drawn.update({path.name: images}))
    model = places()
    Samples(3, [1.0, 0.5], 1e-3)(context(tmp_path, model))
    Samples(3, [1.0], 1.0)(context(tmp_path, model))
    assert list(drawn) == ["raw_t1_p0.001.png", "raw_t0.5_p0.001.png", "raw_t1.png"]
    likeliest = model.net.logits.argmax(1, keepdim=True).expand(3, -1, -1, -1)
    assert torch.equal(drawn["raw_t1_p0.001.png"].long(), likeliest)
    assert not torch.equal(drawn["raw_t1.png"].long(), likeliest)


def _judge(folder, rank, world) -> list[dict]:
    here = context(folder, places(), rank=rank, world=world)
    ood = OutOfDistribution(other(Seeded, SPEC, name="seeded too"), 11)
    every = (Nearest(6, 2, 2), CostMap(2), ood, Complete(1, 0.5, 1, 1.0, 1.0))
    return [item for evaluator in every for item in evaluator(here)]


def _rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    Path(folder, f"rank{rank}.json").write_text(json.dumps(_judge(folder, rank, 2)))
    torch.distributed.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    torch.multiprocessing.spawn(_rank, (str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    alone = json.loads(json.dumps(_judge(tmp_path / "alone", 0, 1)))
    assert first == second
    for one, expected in zip(first, alone, strict=True):
        numbers = ("value", "stderr", "lowest", "highest")
        assert {k: v for k, v in one.items() if k not in numbers} == {k: v for k, v in expected.items() if k not in numbers}
        assert all(one[k] == pytest.approx(expected[k], rel=1e-9) for k in numbers if k in one)
    pictures = [sorted(p.name for p in (folder / "samples").iterdir()) for folder in (tmp_path, tmp_path / "alone")]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 5
    for name in pictures[0]:
        assert (tmp_path / "samples" / name).read_bytes() == (tmp_path / "alone" / "samples" / name).read_bytes()


def test_the_command_and_the_page(tmp_path):
    """Judged at the end of a training, which does not change the run's name, and again by the command."""
    wanted = "evaluators=[nll,complete,nearest,cost_map,out_of_distribution,samples]"
    plain = ["model=pixelcnnpp", "debug=tiny", f"runs_dir={tmp_path}"]
    config = compose(*plain, wanted, "data@other=digits", "evaluators.samples.top_p=0.9")
    assert config["name"] == compose(*plain)["name"] and config["other"]["limit"] == 16
    folder = run(config).folder
    stored = by_metric(json.loads((folder / "results.json").read_text()))
    assert stored["cost_map_bpd"]["value"] == pytest.approx(stored["nll_bpd"]["value"], rel=1e-6)
    assert stored["ood_auroc"]["value"] == 0.5 and stored["ood_auroc"]["other_sha256"] == stored["nll_bpd"]["data_sha256"]
    done = run_program("evaluate.py", f"run={folder}", wanted, "data@other=digits", "other.limit=3", "weights=raw", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "ood_auroc (other=digits)" in done.stdout and "nearest_sample_levels" in done.stdout
    page = (folder / "report.html").read_text()
    names = ["complete_test", "cost_images_test", "cost_map_test", "nearest_test", "out_of_distribution_digits_test"]
    for name in names:
        assert (folder / "samples" / f"{name}_raw.png").exists() and f'alt="{name.replace("_", " ")} raw"' in page
    assert (folder / "samples" / "raw_t1_p0.9.png").exists() and "ood_auroc (other=digits)" in page


def test_which_other_data_must_be_said():
    with pytest.raises(HydraException) as caught:
        compose("evaluators=[out_of_distribution]")
    assert explain(caught.value).startswith("You must specify 'data@other', e.g, data@other=<OPTION> Available options: ")
