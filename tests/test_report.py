"""The page of a run tells what the folder holds, no more and no less, and needs nothing but itself."""

import json
import math
import re
import time
from html.parser import HTMLParser

import pytest
import torch
import yaml

from models.charts import line_chart, short, ticks
from models.contracts import DataSpec
from models.pictures import save_grid
from models.report import headline, write_report

VOID = {"meta", "img", "line", "rect", "polygon", "polyline", "circle", "br"}
NASTY = '<script>alert("1")</script> & \'<b>'


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; fails on a tag that is not closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open, self.words = [], [], [], []
        self.feed(text)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append(tag)

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def read(folder):
    return Page(write_report(folder).read_text())


def record(metric="nll_bpd", value=2.10432, **changes):
    return {
        "metric": metric, "value": value, "stderr": 0.0123, "unit": "bits/dim", "kind": "bound", "split": "test",
        "data": "digits", "data_sha256": "9f2c" * 16, "count": 360, "weights": "raw", "model": "glow",
        "versions": {"torch": "2.15.0"}, "code": {"sha": "b468d13aa0f3c2d1", "dirty": True},
    } | changes  # fmt: skip


PAPER = {
    "title": "Glow", "arxiv": "1807.03039", "table": "Table 2", "row": "Glow", "metric": "nll_bpd", "value": 2.05,
    "unit": "bits/dim", "kind": "bound", "split": "test", "data": "digits",
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    folder = tmp_path / "glow-digits-s1-ab12"
    config = {
        "model": {"width": 8}, "data": {"spec": {"shape": [1, 8, 8], "levels": 17}}, "seed": 1, "paper": None,
        "choices": {"model": "glow", "data": "digits", "experiment": None}, "command": ["python", "train.py", "a='b c'"],
    }  # fmt: skip
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "status.json").write_text('{"state": "finished", "message": ""}')
    put(folder, record())
    rows = ["step,name,value"]
    for step in range(10, 1010, 10):
        rows += [f"{step},train/nll_bpd,{2 + 100 / step!r}", f"{step},train/lr,0.001"]
        if step % 100 == 0:
            rows += [f"{step},val/nll_bpd,{2.1 + 100 / step!r}", f"{step},val_ema/nll_bpd,{2.2 + 100 / step!r}"]
    (folder / "metrics.csv").write_text("\n".join(rows) + "\n1010,train/nll_b")
    (folder / "perf.csv").write_text(
        "step,name,value\n10,perf/images_per_second,100.0\n20,perf/images_per_second,300.0\n"
        "30,perf/images_per_second,900.0\n30,perf/memory_mib,512.4\n"
    )
    for step in range(100, 1001, 100):
        picture(folder, f"step_{step:08d}")
    picture(folder, "reconstruct_test_raw")
    return folder


def put(folder, *records):
    (folder / "results.json").write_text(json.dumps(records))


def change(folder, **changes):
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(config | changes))


def picture(folder, name):
    save_grid(torch.zeros(4, 1, 8, 8), DataSpec((1, 8, 8), 17), folder / "samples" / f"{name}.png")


def test_the_page_tells_the_number_its_error_kind_and_meaning(run):
    text = read(run).text
    assert "glow on digits" in text and "glow-digits-s1-ab12 · seed 1 finished" in text
    assert "nll_bpd on digits, test split 2.104 ± 0.012 bits/dim bound 360 examples raw weights" in text
    assert "An upper bound on the mean of −log p(x)" in text
    assert "Speed (median) 300 images/s" in text and "Peak memory 512 MiB" in text and "1 × 8 × 8, 17 levels" in text
    assert "b468d13aa0f3 with local changes" in text and "Torch 2.15.0" in text
    assert "git checkout b468d13aa0f3c2d1 python train.py 'a='\"'\"'b c'\"'\"''" in text
    assert "width: 8" in text


@pytest.mark.parametrize(
    "kind, words",
    [("exact", "neither bounded nor estimated"), ("estimate", "unbiased estimate"), ("odd", "Kind of statement: odd")],
)
def test_each_kind_is_put_in_words(run, kind, words):
    put(run, record(kind=kind))
    assert words in read(run).text


def test_the_page_needs_nothing_but_itself(run):
    change(run, paper=PAPER)
    page = read(run)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    loaded = [value for tag, name, value in page.attributes if name in ("src", "href", "srcset", "xlink:href")]
    assert [v for v in loaded if not v.startswith("data:image/png;base64,")] == ["https://arxiv.org/abs/1807.03039"]
    style = re.search(r"<style>(.*?)</style>", (run / "report.html").read_text(), re.S)[1]
    assert "url(" not in style and "@import" not in style


def test_the_same_folder_gives_the_same_page(run):
    assert write_report(run).read_bytes() == write_report(run).read_bytes()


def test_samples_through_training_are_the_first_the_last_and_some_between(run):
    text = read(run).text
    assert "Samples, step 1,000" in text
    strip = text[text.index("Samples through training") : text.index("All numbers")]
    assert re.findall(r"step ([\d,]+)", strip) == ["100", "300", "500", "600", "800", "1,000"]
    assert "reconstruct test raw" in text[text.index("Other pictures") :]


def test_the_baseline_of_the_same_split_is_compared(run):
    put(run, record(), record("independent_pixel_bpd", 2.9134, kind="exact"), record("independent_pixel_bpd", 9.0, split="val"))
    assert "2.913 bits/dim This run is 0.809 bits/dim below it." in read(run).text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({}, "2.05 bits/dim, bound Ours minus published: +0.054 bits/dim."),
        ({"kind": "exact"}, "The kinds differ: published exact, ours bound."),
        ({"data": "cifar10"}, "Not comparable with the number above: data cifar10, here digits."),
        ({"unit": "nats"}, "Not comparable with the number above: unit nats, here bits/dim."),
        ({"value": None, "note": "A figure only"}, "no number A figure only"),
    ],
)
def test_a_published_number_is_compared_only_with_its_like(run, changes, said):
    change(run, paper=PAPER | changes)
    text = read(run).text
    assert said in text
    assert ("Ours minus published" in text) == (not {"data", "unit", "value"} & set(changes))


def test_the_headline_is_the_papers_metric_on_averaged_weights_and_the_test_split():
    records = [record("nll_nats"), record("iw_nll_nats"), record(), record(split="val"), record(weights="ema")]
    assert headline(records, None) is records[4]
    assert headline(records, PAPER | {"metric": "iw_nll_nats"}) is records[1]
    assert headline([record("audit_x"), records[0]], None) is records[0]
    assert headline([], PAPER) is None


@pytest.mark.parametrize(
    "left", [[], ["config.yaml"], ["metrics.csv"], ["results.json"], ["config.yaml", "metrics.csv", "samples"]]
)
def test_a_folder_with_parts_missing_still_gives_a_page(run, tmp_path, left):
    folder = tmp_path / "half"
    folder.mkdir()
    for name in left:
        (run / name).rename(folder / name)
    text = read(folder).text
    assert ("No results yet" in text) == ("results.json" not in left)
    assert ("Learning curves" in text) == ("metrics.csv" in left)
    assert ("Samples, step 1,000" in text) == ("samples" in left)


def test_a_failed_run_says_why(run):
    (run / "results.json").unlink()
    (run / "status.json").write_text(json.dumps({"state": "failed", "message": "loss is <nan>"}))
    (run / "error.txt").write_text("Traceback: here")
    text = read(run).text
    assert "This run failed. loss is <nan>" in text and "Traceback: here" in text


def test_every_text_is_escaped(run):
    paper = PAPER | {"row": NASTY, "kind": NASTY, "arxiv": NASTY}
    change(run, paper=paper, choices={"model": NASTY, "data": NASTY}, command=[NASTY])
    nasty = {name: NASTY for name in ("unit", "data", "split", "kind", "data_sha256")}
    put(run, record(**nasty, versions={NASTY: NASTY}, code={"sha": NASTY}))
    (run / "metrics.csv").write_text(f'step,name,value\n1,"train/{NASTY.replace(chr(34), chr(34) * 2)}",2.0\n')
    (run / "status.json").write_text(json.dumps({"state": NASTY, "message": NASTY}))
    picture(run, NASTY.replace("/", ""))
    page = read(run)
    assert "script" not in page.tags and page.tags.count("b") == 1 and page.text.count("alert(") >= 12


def test_a_value_that_was_not_taken_or_is_not_finite_is_shown_as_such(run):
    put(run, record(value=math.inf, stderr=None), record("audit_x", None, check="skipped"))
    text = read(run).text
    assert "inf bits/dim" in text and "audit_x - bits/dim" in text and "skipped" in text


def test_a_long_run_takes_less_than_a_second(run):
    rows = [f"{s},train/{name},{math.sin(s)!r}" for s in range(0, 400_000, 50) for name in ("nll_bpd", "elbo", "grad_norm", "lr")]
    (run / "metrics.csv").write_text("\n".join(["step,name,value", *rows]))
    begin = time.process_time()
    page = write_report(run)
    assert time.process_time() - begin < 1 and page.stat().st_size < 300_000


# --- charts -------------------------------------------------------------------------------------------------------


def polylines(svg):
    return [[tuple(map(float, p.split(","))) for p in line.split()] for line in re.findall(r'<polyline points="([^"]*)"', svg)]


def test_a_curve_is_drawn_to_scale():
    (line,) = polylines(line_chart({"a": [(0, 1.0), (50, 2.0), (100, 3.0)]}, 400, 240, "t"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert 0 < x0 < x2 < 400 and 0 < y2 < y0 < 240


def test_the_first_steps_do_not_set_the_frame():
    points = [(0, 1000.0)] + [(s, 2.0 - s / 1000) for s in range(10, 1000, 10)]
    (line,) = polylines(line_chart({"a": points}, 400, 240, "t"))
    settled = [y for _, y in line[5:]]
    assert max(settled) - min(settled) > 0.8 * 200


def test_a_long_curve_becomes_means_and_a_band():
    points = [(s, float(s % 2)) for s in range(10_000)]
    svg = line_chart({"a": points}, 400, 240, "t")
    (line,) = polylines(svg)
    assert len(line) == 100 and len({y for _, y in line}) == 1
    (band,) = re.findall(r'<polygon points="([^"]*)"', svg)
    heights = {float(p.split(",")[1]) for p in band.split()}
    assert len(heights) == 2 and min(heights) < line[0][1] < max(heights)


@pytest.mark.parametrize(
    "points", [[(5, 2.0)], [(0, 0.0), (1, 0.0)], [(0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0)], [(0, -1e9), (1, 1e9)]]
)
def test_odd_curves_stay_within_the_picture(points):
    svg = line_chart({"a": points}, 400, 240, "t")
    assert all(0 <= x <= 400 and -240 <= y <= 480 for line in polylines(svg) for x, y in line)
    assert "nan" not in svg and "inf" not in svg


def test_labels_at_the_ends_do_not_touch():
    series = {name: [(0, 1.0), (1, 2.0 + i / 1000)] for i, name in enumerate("abcd")}
    places = [float(y) for y in re.findall(r'class="end" x="[\d.]+" y="([\d.]+)"', line_chart(series, 400, 240, "t"))]
    assert len(places) == 4 and min(b - a for a, b in zip(sorted(places), sorted(places)[1:])) >= 13.9


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (1.93, 2.61, [2.0, 2.2, 2.4, 2.6]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 3e-4, [0, 1e-4, 2e-4, 3e-4]),
    ],
)
def test_ticks_are_round_numbers(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    "value, text", [(0.05, "0.05"), (2.3149, "2.31"), (500, "500"), (1500, "1.5k"), (3e6, "3M"), (1e-5, "1e-05"), (0, "0")]
)
def test_numbers_are_short(value, text):
    assert short(value) == text
