"""The page of a run: `report.html`, one self-contained file made from the run folder alone."""

from __future__ import annotations

import base64
import csv
import re
import shlex
from collections import defaultdict
from html import escape
from math import isfinite
from pathlib import Path
from statistics import median

import yaml

from models.charts import Points, line_chart, short
from models.checkpoints import write_atomically
from models.evaluators.results import read_results
from models.report_style import STYLE
from models.table import decimals, label, quantity, record_cells

HEADLINES = ("nll_bpd", "iw_nll_nats", "nll_nats", "coded_bpd")
"""Metrics in the order in which one of them becomes the large number, unless the run reproduces a paper's."""

STRIP = 6
"""Pictures that stand for a whole training, evenly spaced from the first to the last."""


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from what the folder holds; whatever is missing (a crashed run's results) is left out of the page."""
    folder = Path(folder)
    config = _yaml(folder / "config.yaml")
    records = [r for r in read_results(folder) if r.get("value") is not None]
    status = _yaml(folder / "status.json")
    curves = _curves(folder / "metrics.csv")
    pictures = _pictures(folder / "samples")
    head = headline(records, config.get("paper"))
    through = max(pictures.values(), key=len) if any(len(p) > 1 for p in pictures.values()) else []
    sections = [
        _header(folder, config, "" if records and status.get("state") == "running" else str(status.get("state", ""))),
        _notice(folder, status, records),
        _hero(head, through[-1] if through else None),
        _comparisons(head, records, config.get("paper")),
        _section("Learning curves", _charts(curves, head)),
        _section("Samples through training", _strip(through)),
        _section("All numbers", _table(read_results(folder))),
        _section("Other pictures", _others([p for group in pictures.values() if group is not through for p in group])),
        _section("The run", _facts(folder, config, records, curves)),
        _section("Reproduce it", _reproduce(folder, config, records)),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(_title(folder, config))}</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(sections)}</main></body></html>\n"
    )
    write_atomically(folder / "report.html", page.encode())
    return folder / "report.html"


# --- what the folder holds ----------------------------------------------------------------------------------------


def _yaml(path: Path) -> dict:
    content = yaml.safe_load(path.read_text()) if path.exists() else None
    return content if isinstance(content, dict) else {}


def _curves(path: Path) -> dict[str, dict[str, Points]]:
    """Curves by metric, then by prefix (train, val, val_ema); a line that a kill cut off is skipped."""
    curves: dict[str, dict[str, Points]] = defaultdict(lambda: defaultdict(list))
    if path.exists():
        with open(path, newline="") as file:
            for row in csv.reader(file):
                if len(row) == 3 and row[0].isdigit():
                    prefix, _, metric = row[1].partition("/") if "/" in row[1] else ("", "", row[1])
                    curves[metric][prefix].append((int(row[0]), float(row[2])))
    return curves


def _pictures(folder: Path) -> dict[str, list[Path]]:
    """Pictures by what they show; those of one name at several steps (`step_00000250.png`) together, in order."""
    groups = defaultdict(list)
    for path in sorted(folder.glob("*.png")):
        groups[re.sub(r"step_\d+", "step", path.stem)].append(path)
    return groups


def headline(records: list[dict], paper: dict | None) -> dict | None:
    """The record that the page leads with: the paper's metric, else the first of HEADLINES; averaged weights before raw ones."""
    wanted = ([paper["metric"]] if paper and paper.get("metric") else []) + list(HEADLINES)
    order = {metric: i for i, metric in reversed(list(enumerate(wanted)))}

    def rank(record: dict):
        return order.get(record["metric"], len(wanted)), record.get("split") != "test", record.get("weights") != "ema"

    return min(records, key=rank, default=None)


# --- sections -----------------------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _title(folder: Path, config: dict) -> str:
    choices = config.get("choices") or {}
    if choices.get("model") and choices.get("data"):
        return f"{choices.get('experiment') or choices['model']} on {choices['data']}"
    return folder.resolve().name


def _header(folder: Path, config: dict, state: str) -> str:
    badge = f'<span class="badge {escape(state)}">{escape(state)}</span>' if state else ""
    seed = f" · seed {config['seed']}" if "seed" in config else ""
    return f"<header><h1>{escape(_title(folder, config))}</h1><p>{escape(folder.resolve().name + seed)} {badge}</p></header>"


def _notice(folder: Path, status: dict, records: list[dict]) -> str:
    if status.get("state") == "failed":
        trace = folder / "error.txt"
        more = f"<details><summary>where</summary><pre>{escape(trace.read_text())}</pre></details>" if trace.exists() else ""
        return f'<div class="notice failed"><b>This run failed.</b> {escape(str(status.get("message", "")))}{more}</div>'
    if not records:
        return '<div class="notice"><b>No results yet.</b> The numbers appear here once the run has been evaluated.</div>'
    return ""


def meaning(record: dict) -> str:
    """In words, what kind of statement a record is."""
    what = {
        "exact": "Exact: computed, not bounded and not estimated.",
        "bound": "A bound: the model is at least this good; its true value may be better.",
        "estimate": "An estimate: the true value may lie on either side of it.",
        "unnormalized": "Known only up to a constant: comparable within this model and nowhere else.",
    }.get(record["kind"], f"Kind of statement: {record['kind']}.")
    if "nll" in record["metric"]:
        what = {
            "exact": "Exact: the mean of −log p(x) itself, neither bounded nor estimated.",
            "bound": "An upper bound on the mean of −log p(x): the model's true value is this or lower.",
            "estimate": "An unbiased estimate of the mean of −log p(x): the true value may lie on either side.",
        }.get(record["kind"], what)
    return what + (" The error is one standard error over the examples." if record.get("stderr") else "")


def _hero(head: dict | None, last: Path | None) -> str:
    if head is None and last is None:
        return ""
    text = ""
    if head is not None:
        value, _, error = quantity(head["value"], head.get("stderr")).partition(" ± ")
        error = f"± {error} " if error else ""
        count = f"{head['count']:,} examples" if head.get("count") else ""
        weights = {"ema": "averaged weights", "raw": "raw weights"}.get(head.get("weights"), "")
        badges = [f'<span class="badge">{escape(t)}</span>' for t in (count, weights) if t]
        text = (
            f'<div><div class="metric"><code>{escape(label(head))}</code> on {escape(str(head.get("data", "the data")))}, '
            f'{escape(str(head.get("split", "")))} split</div>'
            f'<div class="number">{value}<span>{error}{escape(head["unit"])}</span></div>'
            f'<span class="badge {escape(head["kind"])}">{escape(head["kind"])}</span>{"".join(badges)}'
            f'<p class="meaning">{escape(meaning(head))}</p></div>'
        )
    picture = f"<figure>{_image(last)}<figcaption>Samples, {_caption(last)}</figcaption></figure>" if last else ""
    return f'<div class="card hero{"" if text and picture else " alone"}">{text}{picture}</div>'


def _comparisons(head: dict | None, records: list[dict], paper: dict | None) -> str:
    cards = []
    if paper and head is not None:
        cards.append(_published(head, paper))
    same = [r for r in records if r["metric"].startswith("independent_") and head and r["metric"] != head["metric"]]
    for base in [r for r in same if all(r.get(k) == head.get(k) for k in ("unit", "split", "data"))][:1]:
        gap = base["value"] - head["value"]
        side = "below" if gap >= 0 else "above"
        unit = escape(base["unit"])
        cards.append(
            f"<p class=small>Independent pixels (each a histogram, no model)</p><b>{quantity(base['value'])}</b> {unit}"
            f"<p>This run is {quantity(abs(gap))} {unit} {side} it.</p>"
        )
    return f'<div class="compare">{"".join(f"<div class=card>{c}</div>" for c in cards)}</div>' if cards else ""


def _published(head: dict, paper: dict) -> str:
    where = ", ".join(str(paper[k]) for k in ("title", "table", "row") if paper.get(k))
    link = escape(where)
    if paper.get("arxiv"):
        link = f'<a href="https://arxiv.org/abs/{escape(str(paper["arxiv"]))}">{link}</a>'
    if paper.get("value") is None:
        note = escape(str(paper.get("note") or paper.get("checked") or "Figures only."))
        return f"<p class=small>Published: {link}</p><b>no number</b><p>{note}</p>"
    unlike = [k for k in ("metric", "unit", "data", "split") if paper.get(k) not in (None, head.get(k))]
    if unlike:
        differences = "; ".join(f"{k} {paper[k]}, here {head.get(k)}" for k in unlike)
        verdict = f"Not comparable with the number above: {differences}."
    else:
        gap = head["value"] - paper["value"]
        verdict = f"Ours minus published: {gap:+.{decimals(head['value'], head.get('stderr'))}f} {head['unit']}."
        if paper.get("kind") not in (None, head["kind"]):
            verdict += f" The kinds differ: published {paper['kind']}, ours {head['kind']}."
    value = f"<b>{escape(str(paper['value']))}</b> {escape(', '.join(str(paper[k]) for k in ('unit', 'kind') if paper.get(k)))}"
    return f"<p class=small>Published: {link}</p>{value}<p>{escape(verdict)}</p>"


def _charts(curves: dict[str, dict[str, Points]], head: dict | None) -> str:
    finite = {m: {p: v for p, v in s.items() if any(isfinite(y) for _, y in v)} for m, s in curves.items()}
    finite = {metric: series for metric, series in finite.items() if series}
    if "nll_bpd" in finite:
        finite.pop("nll_nats", None)  # the same curve in another unit
    first = [head["metric"]] if head else []

    def rank(metric: str):
        return metric not in first, metric not in HEADLINES, len(finite[metric]) == 1, not metric.endswith(("_bpd", "_nats"))

    cards = []
    for metric in sorted(finite, key=rank):
        series = {name: finite[metric][name] for name in sorted(finite[metric], key=_series_rank)}
        lead = not cards and len(series) > 1
        shown = series if len(series) > 1 or "train" not in series else {"": series["train"]}
        chart = line_chart(shown, 380, 230, metric)
        if lead:  # drawn twice, so that its text has the same size on every screen
            chart = f'<div class="wide">{line_chart(shown, 1070, 330, metric)}</div><div class="narrow">{chart}</div>'
        cards.append(f'<div class="card{" lead" if lead else ""}"><h3>{escape(metric)}</h3>{chart}</div>')
    return f'<div class="charts">{"".join(cards)}</div>' if cards else ""


def _series_rank(name: str) -> tuple:
    known = ("train", "val", "val_ema")
    return known.index(name) if name in known else len(known), name


def _strip(paths: list[Path]) -> str:
    if len(paths) < 2:
        return ""
    chosen = sorted({round(i * (len(paths) - 1) / (STRIP - 1)) for i in range(STRIP)})
    figures = [f"<figure>{_image(paths[i])}<figcaption>{_caption(paths[i])}</figcaption></figure>" for i in chosen]
    return f'<div class="strip">{"".join(figures)}</div>'


def _others(paths: list[Path]) -> str:
    figures = [f"<figure>{_image(p)}<figcaption>{_caption(p)}</figcaption></figure>" for p in paths]
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _image(path: Path) -> str:
    return f'<img alt="{escape(_caption(path))}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'


def _caption(path: Path) -> str:
    words = re.sub(r"step_(\d+)", lambda m: f"step {int(m[1]):,}", path.stem).replace("_", " ")
    return escape(words)


def _table(records: list[dict]) -> str:
    if not records:
        return ""
    columns, *rows = record_cells(records)
    tags = [" class=n" if column in ("value", "count") else "" for column in columns]
    head = "".join(f"<th{tag}>{column}</th>" for tag, column in zip(tags, columns, strict=True))
    body = "".join(f"<tr>{''.join(f'<td{t}>{escape(c)}</td>' for t, c in zip(tags, row, strict=True))}</tr>" for row in rows)
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _facts(folder: Path, config: dict, records: list[dict], curves: dict) -> str:
    some = records[0] if records else {}
    perf = {name: [y for _, y in s["perf"]] for name, s in _curves(folder / "perf.csv").items() if s.get("perf")}
    steps = max((p[0] for series in curves.values() for points in series.values() for p in points), default=None)
    code, spec = some.get("code") or {}, (config.get("data") or {}).get("spec") or {}
    shown = ("experiment", "model", "data", "objective", "optimizer", "schedule")
    facts = {name.capitalize(): (config.get("choices") or {}).get(name) for name in shown}
    if spec.get("shape"):
        levels = f"{spec['levels']} levels" if spec.get("levels") else "continuous"
        facts["Data shape"] = f"{' × '.join(map(str, spec['shape']))}, {levels}"
    facts["Test data SHA-256"] = str(some["data_sha256"])[:16] if some.get("data_sha256") else None
    facts["Steps"] = f"{steps:,}" if steps is not None else None
    facts["Speed (median)"] = f"{short(median(perf['images_per_second']))} images/s" if "images_per_second" in perf else None
    facts["Peak memory"] = f"{max(perf['memory_mib']):,.0f} MiB" if "memory_mib" in perf else None
    facts["Code"] = f"{str(code['sha'])[:12]}{' with local changes' if code.get('dirty') else ''}" if code.get("sha") else None
    facts |= {name.capitalize(): version for name, version in (some.get("versions") or {}).items()}
    items = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items() if v is not None)
    return f'<dl class="card facts">{items}</dl>' if items else ""


def _reproduce(folder: Path, config: dict, records: list[dict]) -> str:
    command, code = config.get("command"), (records[0].get("code") or {}) if records else {}
    lines = [f"git checkout {code['sha']}"] if code.get("sha") else []
    if command:
        lines.append(command if isinstance(command, str) else shlex.join(map(str, command)))
    shown = f"<pre>{escape(chr(10).join(lines))}</pre>" if lines else ""
    path = folder / "config.yaml"
    if not path.exists():
        return shown
    return f"{shown}<details><summary>config.yaml, fully resolved</summary><pre>{escape(path.read_text())}</pre></details>"
