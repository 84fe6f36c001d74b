"""The benchmarks run and report what they say; how fast anything is, no test decides."""

import json

import pytest
import torch

from benchmarks import common, overhead, sampling, training
from benchmarks.rivals import pixelcnnpp as published


class Time:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def slow(self, count: int, cost: float):
        """``count`` batches, each of which takes ``cost`` to come."""
        for number in range(count):
            self.now += cost
            yield number


@pytest.mark.parametrize("ahead", [0, 1])
def test_clock_reads_the_time_of_a_step_whether_or_not_the_loop_asks_ahead(monkeypatch, ahead):
    time = Time()
    monkeypatch.setattr(overhead, "time", time)
    clock = overhead.Clock(time.slow(20, cost=1.0), 20)
    batches = iter(clock)
    time.now += 100.0  # a slow start
    waiting = [next(batches) for _ in range(ahead)]
    for batch in batches:
        waiting.append(batch)
        waiting.pop(0)
        time.now += 3.0
    time.now += 100.0  # a slow end
    assert clock.seconds == 4.0
    assert clock.loader_share == 0.25


def test_tiny_run_reports_every_loop_and_holds_ratios_to_targets(monkeypatch, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(overhead, "ROOT", tmp_path)
    try:
        result = overhead.main("--cases vae --rounds 2 --steps 6 --tracker csv --write".split())
    finally:
        torch.use_deterministic_algorithms(False)
    rows = {row["quantity"]: row for row in result["rows"]}
    steps = ["bare step, ms", "lightning step, ms", "logpx step, ms"]
    assert list(rows) == [*steps, "logpx / bare", "logpx / lightning", "loader / logpx step"]
    assert [rows[name]["target"] for name in rows] == [None, None, None, 1.5, 1.1, 0.03]
    for row in rows.values():
        low, high = row["quartiles"]
        assert 0 < low <= row["median"] <= high
        assert row["met"] is (None if row["target"] is None else row["median"] <= row["target"])
    assert rows["loader / logpx step"]["median"] < 1
    assert json.loads((tmp_path / "results" / "overhead.json").read_text()) == result
    table = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in table[-1] and "threads 1" in table[-1]
    assert table[4].startswith("vae   logpx / bare  ") and table[4].endswith("met" if rows["logpx / bare"]["met"] else "NOT MET")


def test_long_steps_have_the_strict_target_and_short_ones_none(monkeypatch):
    class Fixed:
        def __init__(self, case, steps, tracker):
            pass

        def take_turn(self, loop):
            clock = overhead.Clock([], 4)
            step = {"bare": 0.06, "lightning": 0.06, "logpx": 0.066}[loop] * scale
            clock.asked, clock.waited = [0.0, 9.0, 10.0, 10.0 + step], [0.0] * 4
            return clock

    monkeypatch.setattr(overhead, "Bench", Fixed)
    case = overhead.Case((), examples=1, steps=4, to_bare=None)
    scale = 1.0
    row = overhead.measure("long", case, 3, None, "csv")[3]
    assert row["median"] == pytest.approx(1.1) and row["target"] == 1.05 and row["met"] is False
    scale = 0.5
    row = overhead.measure("short", case, 3, None, "csv")[3]
    assert row["median"] == pytest.approx(1.1) and row["target"] is None and row["met"] is None


SMALL = ["model.net.num_filters=4", "model.net.num_resnet=1", "model.net.num_scales=2", "data.batch_size=2"]


def test_training_compares_the_same_arithmetic_and_uses_less_memory(monkeypatch, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(training, "ROOT", tmp_path)
    result = training.main(["model=pixelcnnpp", *SMALL, "--rounds", "2", "--eager", "--write"])
    rows = {row["quantity"]: row for row in result["rows"]}
    forms = ["published", "ours", "ours checkpointed"]
    assert list(rows)[:6] == [f"{form} {what}" for what in ("step, ms", "peak, MB") for form in forms]
    assert [(row["target"], row["at_least"]) for row in result["rows"][6:]] == [(1.05, True), (None, True), (0.9, False), (0.6, False)]
    assert 0 < result["environment"]["loss_difference"] < 1e-4 and result["environment"]["clock"] == "CPU time"
    memory = [rows[f"peak memory: ours{form} / published"] for form in ("", " checkpointed")]
    assert all(row["met"] for row in memory) and memory[0]["median"] > memory[1]["median"]
    assert json.loads((tmp_path / "results/benchmarks/training_pixelcnnpp.json").read_text()) == result
    assert "images/s: ours / published  " in capsys.readouterr().out


def test_training_refuses_other_arithmetic(monkeypatch):
    forward = published.Residual.forward
    monkeypatch.setattr(published.Residual, "forward", lambda self, x, a=None: 1.001 * forward(self, x, a))
    with pytest.raises(SystemExit, match="does other arithmetic"):
        training.main(["model=pixelcnnpp", *SMALL, "--eager"])


def test_training_says_what_it_needs(capsys):
    for arguments, message in ((["data=digits"], "give model=NAME once"), (["model=vae"], "write benchmarks/rivals/vae.py")):
        with pytest.raises(SystemExit):
            training.main(arguments)
        assert message in capsys.readouterr().err


def test_peak_is_the_most_that_lives_at_once():
    def work():
        first = torch.ones(1000, 1000)
        second = first + 1
        del first, second
        torch.ones(500, 1000)

    assert training.peak_of_cpu_allocations(work) == pytest.approx(8e6, rel=0.01)


def test_sampling_reports_both_ways_and_the_ideal(monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(sampling, "ROOT", tmp_path)
    monkeypatch.setattr(sampling, "CASES", {"pixelcnnpp": sampling.CASES["pixelcnnpp"]})
    visited, draw = [], sampling.uncached_draw
    monkeypatch.setattr(sampling, "uncached_draw", lambda *given: visited.append(given[-1]) or draw(*given))
    shape = ["data.spec.shape=[3,4,6]", "likelihood.num_mixtures=2"]
    result = sampling.main([*SMALL, *shape, "--rounds", "3", "--write"])
    assert sorted(visited) == [0, 4, 8, 12, 16, 20]
    assert [row["quantity"] for row in result["rows"]] == [
        "cached, s", "uncached, s: 6 of 24 positions, scaled", "uncached / cached", "cached / forward pass",
    ]  # fmt: skip
    assert all(row["median"] > 0 and row["target"] is None for row in result["rows"])
    assert json.loads((tmp_path / "results/benchmarks/sampling.json").read_text()) == result


def test_sampling_of_a_net_without_a_cache_is_refused(monkeypatch):
    from models.autoregressive.pixelcnnpp import PixelCNNpp

    monkeypatch.setattr(PixelCNNpp, "start", lambda self, n, y=None: None)
    with pytest.raises(SystemExit, match="has no cache"):
        sampling.main([*SMALL, "data.spec.shape=[3,4,4]", "--models", "pixelcnnpp"])


@pytest.mark.parametrize("at_least, met", [(True, True), (False, False)])
def test_rows_are_held_to_bounds_from_either_side(at_least, met):
    row = common.row("case", "ratio", [1.0, 3.0, 2.0], 1.5, at_least)
    assert row["median"] == 2.0 and row["met"] is met
    assert (">= 1.50  met" if at_least else "<= 1.50  NOT MET") in common.format_rows([row])


TINY_FLOWS = {
    "glow": (
        ["model.architecture.num_levels=2", "model.architecture.num_steps=2", "data.batch_size=2"],
        ["model.architecture.step.coupling.conditioner.width=8"],
        ["published", "normflows", "ours", "ours recomputing"],
    ),
    "maf": (["model.architecture.num_steps=2", "data.batch_size=4"], ["model.architecture.step.autoregressive.hidden=[8,8]"],
            ["zuko", "nflows", "ours"]),
    "nsf": (["model.architecture.num_steps=2", "data.batch_size=4"], ["model.architecture.step.coupling.conditioner.width=8"],
            ["zuko", "nflows", "normflows", "ours"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TINY_FLOWS)
def test_flows_are_held_against_plain_forms_and_libraries(name):
    sizes, net, forms = TINY_FLOWS[name]
    result = training.main([f"model={name}", *sizes, *net, "--rounds", "1", "--eager"])
    rows = {row["quantity"]: row for row in result["rows"]}
    drawn = [form for form in forms if form != "ours recomputing"]
    assert list(rows)[: 2 * len(forms) + 2 * len(drawn)] == [
        *(f"{form} step, ms" for form in forms), *(f"{form} draw, ms" for form in drawn),
        *(f"{form} later draw, ms" for form in drawn), *(f"{form} peak, MB" for form in forms),
    ]  # fmt: skip
    ratios = ("images/s", "samples/s", "later samples/s", "peak memory")
    assert all(f"{ratio}: ours / {form}" in rows for form in drawn if form != "ours" for ratio in ratios)
    assert all(row["median"] > 0 for row in result["rows"])
    assert result["environment"]["loss_difference"] < 1e-4
