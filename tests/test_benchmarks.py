"""The overhead benchmark runs and reports what it says; how fast anything is, no test decides."""

import json

import pytest
import torch

from benchmarks import overhead


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
    threads = torch.get_num_threads()
    try:
        result = overhead.main("--cases vae --rounds 2 --steps 6 --tracker csv --write".split())
    finally:
        torch.set_num_threads(threads)
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
