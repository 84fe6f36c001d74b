"""Tables: the records of one run for the console, and published numbers next to ours from many run folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from math import floor, isfinite, log10
from pathlib import Path
from statistics import mean, stdev
from urllib.parse import quote

import yaml

from models.build import ConfigError
from models.compose import NOT_IDENTITY
from models.evaluators.results import read_results

CONF = Path(__file__).resolve().parents[1] / "conf"

REQUIRED = {"row", "data", "split", "metric", "unit", "kind", "value"}
"""What a row of a table states, by itself or through its experiment's ``paper``."""
OPTIONAL = {"title", "arxiv", "table", "checked", "note", "experiment", "choices", "settings", "weights"}

# --- numbers as text ----------------------------------------------------------------------------------------------


def decimals(value: float, error: float | None) -> int:
    """Digits after the point: two significant ones of the error, else three (two from 100 on)."""
    if error and isfinite(error):
        return min(6, max(0, 1 - floor(log10(error))))
    return 3 if abs(value) < 100 else 2


def quantity(value: float | None, error: float | None = None) -> str:
    """``2.104 ± 0.012``, ``88.71``, ``3.1e-07``, ``inf``; ``-`` for a number that was not taken."""
    if value is None:
        return "-"
    if not isfinite(value):
        return str(value)
    if 0 < abs(value) < 1e-3 and not error:
        return f"{value:.1e}"
    digits = decimals(value, error)
    return f"{value:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None and isfinite(error) else "")


def label(record: dict) -> str:
    """The metric with what tells its records apart: how many importance weights, which other data."""
    settings = record.get("settings") or {}
    told = [f"{name}={settings[name]}" for name in ("k", "other") if settings.get(name)]
    return record["metric"] + (f" ({', '.join(told)})" if told else "")


def aligned(rows: list[list[str]], right: set[int], gap: str = "  ") -> list[str]:
    """Cells padded to columns; the columns in ``right`` end flush."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.rjust if i in right else str.ljust for i in range(len(widths))]
    return [gap.join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)) for row in rows]


def record_cells(records: list[dict]) -> list[list[str]]:
    """The columns of a table of records, then a row of cells for each."""
    columns = ["unit", "kind", "split", "weights", "count"] + ["check"] * any("check" in record for record in records)
    rows = [["metric", "value", *columns]]
    for record in records:
        cells = [f"{record[c]:,}" if c == "count" and c in record else str(record.get(c) or "-") for c in columns]
        rows.append([label(record), quantity(record["value"], record.get("stderr")), *cells])
    return rows


def format_records(records: list[dict]) -> str:
    """The records of a run as one plain table: metric, value ± standard error, unit, kind, split, weights, count, check."""
    if not records:
        return "no results"
    head, *body = (line.rstrip() for line in aligned(record_cells(records), right={1, 6}))
    return "\n".join([head, "─" * max(map(len, [head, *body])), *body])


# --- published next to ours ---------------------------------------------------------------------------------------


@dataclass
class Line:
    """One row of a table: a published number and the mean of ours over the seeds of one configuration."""

    row: dict
    variant: str = ""
    records: list[dict] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)

    @property
    def published(self) -> str:
        return "-" if self.row["value"] is None else str(self.row["value"])

    @property
    def values(self) -> list[float]:
        return [record["value"] for record in self.records]

    @property
    def ours(self) -> str:
        """Mean and, from two seeds on, the standard deviation over seeds."""
        return quantity(mean(self.values), stdev(self.values) if len(self.values) > 1 else None) if self.values else "-"

    @property
    def difference(self) -> str:
        """Ours minus published."""
        if not self.values or self.row["value"] is None:
            return "-"
        spread = stdev(self.values) if len(self.values) > 1 else None
        return f"{mean(self.values) - self.row['value']:+.{decimals(mean(self.values), spread)}f}"

    @property
    def kind(self) -> str:
        """The kind of both numbers; where they are not the same, it says so."""
        ours = sorted({record["kind"] for record in self.records})
        if not ours or ours == [self.row["kind"]]:
            return self.row["kind"]
        return f"published {self.row['kind']}, ours {' and '.join(ours)}: do not compare"

    def cells(self) -> list[str]:
        row, weights = self.row, {record.get("weights", "-") for record in self.records}
        steps = sorted({record["step"] for record in self.records if "step" in record})
        return [
            row["row"] + (f" ({self.variant})" if self.variant else ""),
            f"{row['data']}, {row['split']}",
            self.published,
            self.ours,
            str(len(self.records)),
            self.difference,
            row["unit"],
            self.kind,
            "".join(weights) or "-",
            ", ".join(f"{step:,}" for step in steps) or "-",
        ]


COLUMNS = ["row", "data", "published", "ours", "seeds", "difference", "unit", "kind", "weights", "steps", "runs"]
NUMBERS = {2, 3, 4, 5, 9}


@dataclass
class Table:
    """Published next to ours; ``str(table)`` is its Markdown."""

    title: str
    lines: list[Line]

    def markdown(self) -> str:
        rows = [COLUMNS]
        for line in self.lines:
            links = " ".join(f"[{_markdown(run.name)}]({_link(run)})" for run in line.runs)
            rows.append([*(_markdown(cell) for cell in line.cells()), links or "-"])
        head, *body = (f"| {line} |" for line in aligned(rows, NUMBERS, " | "))
        widths = [len(part) for part in head.split("|")[1:-1]]
        rule = "|".join("-" * (w - 1) + (":" if i in NUMBERS else "-") for i, w in enumerate(widths))
        return "\n".join([f"**{_markdown(self.title)}**", "", head, f"|{rule}|", *body, "", NOTE])

    def latex(self) -> str:
        """A ``tabular`` for booktabs; run folders are left out."""
        form = "".join("r" if i in NUMBERS else "l" for i in range(len(COLUMNS) - 1))
        rows = [" & ".join(map(_latex, line.cells())) + r" \\" for line in self.lines]
        head = " & ".join(COLUMNS[:-1]) + r" \\"
        start = [f"% {' '.join(self.title.split())}", rf"\begin{{tabular}}{{{form}}}", r"\toprule", head, r"\midrule"]
        return "\n".join([*start, *rows, r"\bottomrule", r"\end{tabular}"])

    def html(self) -> str:
        def cells(tag: str, texts: list[str]) -> str:
            return "".join(f'<{tag}{" class=n" if i in NUMBERS else ""}>{text}</{tag}>' for i, text in enumerate(texts))

        body = []
        for line in self.lines:
            links = " ".join(f'<a href="{escape(_link(run))}">{escape(run.name)}</a>' for run in line.runs) or "-"
            body.append(f"<tr>{cells('td', [*map(escape, line.cells()), links])}</tr>")
        head = f"<thead><tr>{cells('th', COLUMNS)}</tr></thead>"
        caption = f"<caption>{escape(self.title)}</caption>"
        return "\n".join(["<table>", caption, head, "<tbody>", *body, "</tbody>", "</table>", f"<p>{escape(NOTE)}</p>"])

    __str__ = markdown


NOTE = "ours: mean over seeds ± standard deviation; difference: ours minus published; smaller is better; debug runs are left out."


def table(which: str | Mapping, runs: Path = Path("runs")) -> Table:
    """The table ``conf/table/WHICH.yaml`` (or that content) filled from the run folders in ``runs``.

    A row takes what it does not state itself from the ``paper`` of its experiment, then from the table's ``each``.
    A run belongs to a row if it was made with the row's ``experiment`` (or, without one, with its ``choices`` and no
    experiment) and has a record of the row's metric, split, data variant and ``settings``; averaged weights win over raw ones
    unless the row says ``weights``. Runs that differ in nothing but the seed are one line; other settings, other test data or
    another count make a line of their own. Raises ConfigError for a malformed table and for a unit that is not the row's.
    """
    content = _read(which)
    found = sorted(p.parent for p in Path(runs).glob("*/results.json"))
    stored = [(run, yaml.safe_load((run / "config.yaml").read_text()), read_results(run)) for run in found]
    stored = [item for item in stored if not item[1].get("debug")]
    lines = []
    for row in content["rows"]:
        groups: dict[tuple, Line] = {}
        settings = []
        for run, config, records in stored:
            record = _match(row, config, records, run)
            if record is None:
                continue
            setting = _flat({k: v for k, v in config.items() if k == "choices" or k not in NOT_IDENTITY})
            setting |= {"test data": record.get("data_sha256"), "count": record.get("count"), "weights": record.get("weights")}
            line = groups.setdefault(tuple(sorted((k, repr(v)) for k, v in setting.items())), Line(row))
            if not line.records:
                settings.append(setting)
            line.records.append(record)
            line.runs.append(run)
        for line, variant in zip(groups.values(), _variants(settings), strict=True):
            line.variant = variant
        lines += groups.values() or [Line(row)]
    return Table(content["title"], lines)


def _read(which: str | Mapping) -> dict:
    if isinstance(which, str):
        which = _load("table", which)
    rows = []
    for row in which["rows"]:
        paper = _paper(row["experiment"]) if "experiment" in row else {}
        rows.append(which.get("each", {}) | paper | row)
    for row in rows:
        if missing := sorted(REQUIRED - set(row)):
            raise ConfigError(f"a row of the table {which['title']!r} lacks {', '.join(missing)}: {row}")
        if unknown := sorted(set(row) - REQUIRED - OPTIONAL):
            raise ConfigError(f"a row of the table {which['title']!r} has unknown keys {', '.join(unknown)}: {row}")
        if ("experiment" in row) == ("choices" in row):
            raise ConfigError(f"a row of the table {which['title']!r} needs either an experiment or choices: {row}")
    return {"title": which["title"], "rows": rows}


def _load(group: str, name: str) -> dict:
    folder = CONF / group
    if not (folder / f"{name}.yaml").exists():
        raise ConfigError(f"there is no {group} {name!r}; there are: {', '.join(sorted(p.stem for p in folder.glob('*.yaml')))}")
    return yaml.safe_load((folder / f"{name}.yaml").read_text())


def _paper(experiment: str) -> dict:
    """What an experiment, or one that it begins with, says of its paper."""
    content = _load("experiment", experiment)
    begun = [_paper(name) for name in content.get("defaults", []) if isinstance(name, str) and name != "_self_"]
    return {k: v for paper in [*begun, content.get("paper") or {}] for k, v in paper.items()}


def _match(row: dict, config: dict, records: list[dict], run: Path) -> dict | None:
    """The record of a run that stands in a row, or None."""
    wanted = row.get("choices", {}) | {"experiment": row.get("experiment")}
    if any(config["choices"].get(name) != value for name, value in wanted.items()):
        return None
    same = ("metric", "split", "data")
    fitting = [r for r in records if all(r.get(name) == row[name] for name in same)]
    fitting = [r for r in fitting if (row.get("settings") or {}).items() <= (r.get("settings") or {}).items()]
    weights = row.get("weights") or ("ema" if any(r.get("weights") == "ema" for r in fitting) else "raw")
    fitting = [r for r in fitting if r.get("weights", "raw") == weights]
    if len(fitting) > 1:
        raise ConfigError(f"{run} answers {row['metric']} of {row['row']!r} {len(fitting)} times: give the row its settings")
    if fitting and fitting[0]["unit"] != row["unit"]:
        units = f"in {fitting[0]['unit']}, the row {row['row']!r} is in {row['unit']}"
        raise ConfigError(f"{run} has {row['metric']} {units}: they cannot stand together")
    return fitting[0] if fitting else None


def _flat(node, path: tuple = ()) -> dict[str, object]:
    """Leaves of a config by dotted name, without what only says where, when and with which seed it ran."""
    if path and (path[-1] == "seed" or path in (("data", "root"), ("data", "download"), ("data", "eval_batch_size"))):
        return {}
    if path[:1] == ("choices",) and path[1:] and path[1] in NOT_IDENTITY:
        return {}
    if isinstance(node, dict):
        return {k: v for name, value in node.items() for k, v in _flat(value, (*path, str(name))).items()}
    return {".".join(path): node}


def _variants(settings: list[dict], shown: int = 4) -> list[str]:
    """What tells the configurations of one row apart; nothing if there is only one. A differing choice stands for its content."""
    names = sorted({name for setting in settings for name in setting})
    differing = [n for n in names if len({repr(setting.get(n)) for setting in settings}) > 1]
    choices = {n.removeprefix("choices.") for n in differing if n.startswith("choices.")}
    kept = [n for n in differing if n.startswith("choices.") or not choices & set(n.split("."))]
    texts = []
    for setting in settings:
        parts = [f"{name.removeprefix('choices.')}={setting.get(name)}" for name in kept]
        texts.append(", ".join(parts[:shown]) + (f", {len(parts) - shown} more" if len(parts) > shown else ""))
    return texts


# --- escaping -----------------------------------------------------------------------------------------------------


def _link(run: Path) -> str:
    """Where a run is read: its page if it has one."""
    page = run / "report.html"
    return quote((page if page.exists() else run).as_posix())


def _markdown(text: str) -> str:
    for special in "\\|*[]<>`":
        text = text.replace(special, "\\" + special)
    return " ".join(text.split())


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"±": r"$\pm$", "<": r"$<$", ">": r"$>$"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def _latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(character, character) for character in text).split())
