"""A table shows a number only where it belongs, says what it is, and spoils no document it is put in."""

import json
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from models.build import ConfigError
from models.table import format_records, quantity, table

ROOT = Path(__file__).resolve().parents[1]
ROW = {
    "row": "Glow", "experiment": None, "choices": {"model": "glow"}, "data": "digits", "split": "test",
    "metric": "nll_bpd", "unit": "bits/dim", "kind": "bound", "value": 2.0,
}  # fmt: skip
ROW = {name: value for name, value in ROW.items() if value is not None}


def record(value, **changes):
    return {
        "metric": "nll_bpd", "value": value, "stderr": 0.01, "unit": "bits/dim", "kind": "bound", "split": "test",
        "data": "digits", "data_sha256": "ab", "count": 360, "weights": "raw", "settings": {}, "step": 1000, "model": "glow",
    } | changes  # fmt: skip


def make(runs, name, *records, seed=1, width=8, debug=None, **choices):
    """A run folder as training leaves it."""
    folder = runs / name
    folder.mkdir(parents=True)
    config = {
        "model": {"width": width}, "data": {"name": "digits", "seed": seed, "root": f"/data/{name}"},
        "seed": seed, "debug": debug, "name": name,
        "choices": {"model": "glow", "data": "digits", "experiment": None, "tracker": name} | choices,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "results.json").write_text(json.dumps(records))
    return folder


def lines(runs, *rows):
    return table({"title": "T", "rows": list(rows)}, runs).lines


def test_seeds_are_averaged_and_their_spread_is_the_standard_deviation(tmp_path):
    for seed, value in enumerate([2.1, 2.2, 2.6]):
        make(tmp_path, f"r{seed}", record(value), seed=seed)
    (line,) = lines(tmp_path, ROW)
    assert line.ours == "2.30 ± 0.26"  # variance ((0.2)^2 + (0.1)^2 + (0.3)^2) / 2 = 0.07
    assert (line.difference, line.kind, line.variant) == ("+0.30", "bound", "")
    assert [run.name for run in line.runs] == ["r0", "r1", "r2"]


def test_one_seed_has_no_spread_and_no_run_is_a_dash(tmp_path):
    (empty,) = lines(tmp_path, ROW)
    assert (empty.ours, empty.difference, empty.published) == ("-", "-", "2.0")
    make(tmp_path, "r", record(2.1))
    (line, unpublished) = lines(tmp_path, ROW, ROW | {"value": None})
    assert (line.ours, line.difference) == ("2.100", "+0.100")
    assert (unpublished.ours, unpublished.difference, unpublished.published) == ("2.100", "-", "-")


@pytest.mark.parametrize(
    "stranger",
    [{"data": "mnist_static"}, {"split": "val"}, {"metric": "iw_nll_bpd"}, {"weights": "best"}],
)
def test_other_data_split_metric_or_weights_do_not_stand_in_the_row(tmp_path, stranger):
    make(tmp_path, "r", record(2.1, **stranger))
    assert lines(tmp_path, ROW)[0].ours == "-"


@pytest.mark.parametrize("choices", [{"model": "vae"}, {"experiment": "glow_cifar10"}])
def test_other_models_and_experiments_do_not_stand_in_the_row(tmp_path, choices):
    make(tmp_path, "r", record(2.1), **choices)
    assert lines(tmp_path, ROW)[0].ours == "-"


def test_shrunk_runs_are_no_results(tmp_path):
    make(tmp_path, "r", record(2.1), debug="tiny")
    assert lines(tmp_path, ROW)[0].ours == "-"


def test_another_unit_is_refused(tmp_path):
    make(tmp_path, "r", record(2.1, unit="nats"))
    with pytest.raises(ConfigError, match="in nats, the row 'Glow' is in bits/dim"):
        lines(tmp_path, ROW)


def test_another_kind_is_flagged(tmp_path):
    make(tmp_path, "r", record(2.1, kind="exact"))
    (line,) = lines(tmp_path, ROW)
    assert line.kind == "published bound, ours exact: do not compare"


def test_averaged_weights_win_unless_the_row_says_raw(tmp_path):
    make(tmp_path, "r", record(2.1), record(2.05, weights="ema"))
    assert [line.ours for line in lines(tmp_path, ROW, ROW | {"weights": "raw"})] == ["2.050", "2.100"]


def test_the_settings_of_an_evaluator_tell_its_numbers_apart(tmp_path):
    make(tmp_path, "r", record(2.1, settings={"k": 100, "chunk": 5}), record(2.0, settings={"k": 5000, "chunk": 5}))
    assert lines(tmp_path, ROW | {"settings": {"k": 5000}})[0].ours == "2.000"
    with pytest.raises(ConfigError, match="2 times: give the row its settings"):
        lines(tmp_path, ROW)


def test_other_settings_data_or_counts_make_a_line_of_their_own(tmp_path):
    make(tmp_path, "a", record(2.1), seed=1)
    make(tmp_path, "b", record(2.3), seed=2)
    make(tmp_path, "c", record(2.5), width=16)
    make(tmp_path, "d", record(2.6, count=100))
    make(tmp_path, "e", record(2.7, data_sha256="cd"))
    make(tmp_path, "f", record(2.8), optimizer="sgd")
    found = {line.variant: line.ours for line in lines(tmp_path, ROW)}
    assert len(found) == 5 and list(found.values())[0] == "2.20 ± 0.14"
    for variant in ("model.width=16", "count=100", "test data=cd", "optimizer=sgd"):
        assert sum(variant in label for label in found) == 1


def test_a_table_file_with_a_mistake_is_refused_in_one_line(tmp_path):
    for row, message in [
        ({k: v for k, v in ROW.items() if k != "unit"}, "lacks unit"),
        (ROW | {"colour": 1}, "unknown keys colour"),
        ({k: v for k, v in ROW.items() if k != "choices"}, "either an experiment or choices"),
        (ROW | {"experiment": "not_there"}, "there is no experiment 'not_there'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            lines(tmp_path, row)
    with pytest.raises(ConfigError, match="no table 'nothing'; there are: .*glow"):
        table("nothing", tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/table").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_tables_of_the_project_are_whole_and_name_known_data(path, tmp_path):
    filled = table(path.stem, tmp_path)
    names = {p.stem for p in (ROOT / "conf/data").glob("*.yaml")}
    assert filled.lines and {line.row["data"].removesuffix("_5bit") for line in filled.lines} <= names
    assert "| - " in filled.markdown()


def test_an_experiment_inherits_what_the_one_it_begins_with_says_of_its_paper(tmp_path):
    full, reduced, *_ = table("vae", tmp_path).lines
    assert full.row["value"] == reduced.row["value"] == 88.71 and full.row["row"] != reduced.row["row"]


# --- documents ----------------------------------------------------------------------------------------------------

NASTY = "5% of a_b | A&B <script>alert(1)</script> #1 $x^2$ ~ {z} \\ \"quoted\" *bold*"


class Cells(HTMLParser):
    """The texts and tags of a page."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def nasty(tmp_path):
    make(tmp_path, 'a & "b" <i>', record(2.1))
    return table({"title": NASTY, "rows": [ROW | {"row": NASTY}]}, tmp_path)


def test_html_shows_every_text_as_it_is(nasty, tmp_path):
    page = Cells(nasty.html())
    assert page.texts.count(NASTY) == 2 and "script" not in page.tags and "i" not in page.tags
    assert list(map(unquote, page.links)) == [(tmp_path / 'a & "b" <i>').as_posix()]
    assert page.tags.count("td") == page.tags.count("th") == 11


def test_markdown_keeps_its_columns(nasty):
    rows = [line for line in nasty.markdown().splitlines() if line.startswith("|")]
    columns = [line.replace("\\\\", "").replace("\\|", "").count("|") for line in rows]
    assert columns == [12, 12, 12] and len({len(line) for line in rows}) == 1
    assert "\\<script\\>" in rows[2] and "\\*bold\\*" in rows[2]


def test_latex_has_no_bare_special_character(nasty):
    text = nasty.latex()
    row = text.splitlines()[5]
    expected = (
        r"5\% of a\_b | A\&B $<$script$>$alert(1)$<$/script$>$ \#1 \$x\textasciicircum{}2\$ \textasciitilde{} \{z\} "
        r'\textbackslash{} "quoted" *bold*'
    )
    assert row.startswith(expected + " & ") and row.endswith(r"\\") and row.replace(r"\&", "").count("&") == 9
    assert text.splitlines()[0].startswith("% ") and text.count("\n") == 7


def test_a_run_with_a_page_is_linked_to_it(tmp_path):
    (make(tmp_path, "r", record(2.1)) / "report.html").write_text("")
    assert f"[r]({(tmp_path / 'r/report.html').as_posix()})" in str(table({"title": "T", "rows": [ROW]}, tmp_path))


# --- the console --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, error, text",
    [
        (2.10432, 0.0123, "2.104 ± 0.012"),
        (88.7134, 0.31, "88.71 ± 0.31"),
        (1980.5, 23.0, "1980 ± 23"),
        (3.0, 0.0, "3.000 ± 0.000"),
        (2.10432, None, "2.104"),
        (431.256, None, "431.26"),
        (3.1e-7, None, "3.1e-07"),
        (0.0, None, "0.000"),
        (float("inf"), None, "inf"),
    ],
)
def test_numbers_show_as_many_digits_as_their_error_allows(value, error, text):
    assert quantity(value, error) == text


def test_records_become_an_aligned_table():
    weighted = record(88.7, metric="iw_nll_nats", unit="nats", stderr=None, settings={"k": 5000})
    records = [record(2.10432, stderr=0.0123, count=10000), weighted]
    assert format_records(records).splitlines() == [
        "metric                        value  unit      kind   split  weights   count",
        "────────────────────────────────────────────────────────────────────────────",
        "nll_bpd               2.104 ± 0.012  bits/dim  bound  test   raw      10,000",
        "iw_nll_nats (k=5000)         88.700  nats      bound  test   raw         360",
    ]
    assert format_records([]) == "no results"
