"""A tracker in any state of disrepair never slows, changes or stops what it follows."""

import importlib.util
import logging
import threading
import time
from pathlib import Path

import pytest
import yaml
from fake_tracker import FakeTracker

from callbacks.tracker import GuardedTracker, Tracker, require, summary
from models.build import instantiate

RECORDS = [{"metric": "nll_bpd", "value": 2.5, "split": "test", "weights": "raw"}]


def follow(tracker, queue_size=100, finish_seconds=5.0, steps=20):
    """A small training as its tracker sees it; the seconds it spent in the tracker's calls before ``finish``."""
    guarded = GuardedTracker(tracker, queue_size, finish_seconds)
    begin = time.perf_counter()
    guarded.start(Path("run"), {"seed": 1}, False)
    for step in range(steps):
        guarded.log({"train/nll_bpd": float(step)}, step)
    guarded.image("samples", Path("step.png"), steps)
    spent = time.perf_counter() - begin
    guarded.finish(RECORDS)
    return spent


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def test_every_call_arrives_in_order_and_nothing_is_said(caplog):
    fake = FakeTracker()
    follow(fake, steps=3)
    assert fake.calls == [
        ("start", Path("run"), {"seed": 1}, False),
        *(("log", {"train/nll_bpd": float(s)}, s) for s in range(3)),
        ("image", "samples", Path("step.png"), 3),
        ("finish", RECORDS),
    ]
    assert not warnings(caplog)


def test_what_is_sent_does_not_change_when_the_caller_reuses_its_dictionaries():
    gate = threading.Event()
    fake = FakeTracker({"start": gate})
    guarded = GuardedTracker(fake, 10, 5.0)
    config, values = {"model": {"width": 8}}, {"loss": 1.0}
    guarded.start(Path("run"), config, False)
    guarded.log(values, 0)
    config["model"]["width"], values["loss"] = 9, 2.0
    gate.set()
    guarded.finish([])
    assert fake.calls[:2] == [("start", Path("run"), {"model": {"width": 8}}, False), ("log", {"loss": 1.0}, 0)]


@pytest.mark.parametrize("error", [OSError("no route\nto host"), SystemExit(1), KeyboardInterrupt()])
@pytest.mark.parametrize("method, sent, unsent", [("start", 0, 22), ("log", 3, 20), ("image", 22, 1), ("finish", 22, 1)])
def test_a_tracker_that_raises_is_reported_once_and_counted(caplog, method, error, sent, unsent):
    fake = FakeTracker({method: error})
    assert follow(fake) < 0.5
    assert len(fake.calls) == sent
    first, last = warnings(caplog)
    assert f"failed in {method} ({type(error).__name__}" in first and "to host" not in first
    assert f"{unsent} entries were not sent" in last


def test_a_tracker_that_hangs_for_ever_costs_no_more_than_the_wait_at_the_end(caplog):
    begin = time.perf_counter()
    assert follow(FakeTracker({"start": threading.Event()}), queue_size=8, finish_seconds=0.3) < 0.2
    assert time.perf_counter() - begin < 2
    first, last = warnings(caplog)
    assert "does not keep up" in first and "23 entries were not sent within 0.3 s" in last


def test_a_tracker_that_hangs_at_the_end_is_left_behind(caplog):
    fake = FakeTracker({"finish": threading.Event()})
    follow(fake, finish_seconds=0.3)
    assert len(fake.calls) == 22
    assert warnings(caplog) == ["FakeTracker: 1 entries were not sent within 0.3 s of the end; the run folder has them all"]


def test_a_slow_tracker_does_not_slow_the_caller_and_gets_everything(caplog):
    fake = FakeTracker()
    fake.log = lambda values, step: (time.sleep(0.02), fake.calls.append(step))
    assert follow(fake) < 0.1
    assert [c for c in fake.calls if isinstance(c, int)] == list(range(20))
    assert not warnings(caplog)


def test_the_end_of_a_run_that_never_started_is_silent(caplog):
    fake = FakeTracker()
    GuardedTracker(fake, 10, 5.0).finish(RECORDS)
    assert not fake.calls and not caplog.records


def test_records_are_named_by_split_and_weights_and_left_out_without_a_value():
    records = [*RECORDS, {"metric": "nll_bpd", "value": 2.4, "split": "test", "weights": "ema"}]
    records.append({"metric": "audit_causality_error", "value": None, "split": "test", "weights": "raw"})
    assert summary(records) == {"test/nll_bpd": 2.5, "test_ema/nll_bpd": 2.4}


def test_a_missing_package_is_one_line_with_the_extra_to_install():
    with pytest.raises(ValueError, match=r'pip install -e "\.\[mlflow\]"'):
        require("a_package_that_is_not_there", "mlflow")


@pytest.mark.parametrize("name", ["csv", "wandb", "tensorboard", "mlflow"])
def test_every_tracker_of_the_command_line_builds(name):
    root = Path(__file__).resolve().parents[1]
    if name != "csv" and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    tracker = instantiate(yaml.safe_load((root / f"conf/tracker/{name}.yaml").read_text()))
    assert isinstance(tracker, Tracker)
    assert (name == "csv") == (type(tracker) is Tracker), "everything that talks to somebody is guarded"
