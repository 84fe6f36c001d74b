"""What the trackers write is read back with the readers of those libraries."""

import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from callbacks.tracker import GuardedTracker

ROOT = Path(__file__).resolve().parents[1]
CONFIG = {"model": {"width": 8}, "seed": 1}
RECORDS = [{"metric": "nll_bpd", "value": 2.5, "split": "test", "weights": "raw"}]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder on a machine where nobody is logged in."""
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    folder = tmp_path / "runs" / "glow-digits"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 4), (255, 0, 0)).save(folder / "step.png")
    return folder


def train(build, folder, steps, resumed):
    """Steps of a training, through the guard; no stream of random numbers may move."""
    before = random.getstate(), numpy.random.get_state()[1].copy(), torch.get_rng_state()
    tracker = GuardedTracker(build(), 100, 60.0)
    tracker.start(folder, CONFIG, resumed)
    for step in steps:
        tracker.log({"train/nll_bpd": 10.0 - step}, step)
    tracker.image("samples", folder / "step.png", steps[-1])
    tracker.finish(RECORDS)
    assert random.getstate() == before[0]
    assert (numpy.random.get_state()[1] == before[1]).all()
    assert torch.equal(torch.get_rng_state(), before[2])


def wandb_records(path):
    """The records of a .wandb file: LevelDB's log format (blocks of 32 KiB; crc, length, type) after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # too short for a header: zeros up to the next block
            at += 32768 - at % 32768
            continue
        _, length, part = struct.unpack_from("<IHB", content, at)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # full, last
            yield Record.FromString(parts)
            parts = b""


def wandb_values(records, name):
    """(step, value) of the history rows that have ``name``."""
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if name in row:
                yield int(row["_step"]), float(row[name])


def test_wandb_offline_files_hold_the_curve_and_a_resumed_run_goes_on_under_the_same_id(run, caplog):
    wandb = pytest.importorskip("wandb")
    from callbacks.trackers.wandb import WandbTracker

    try:
        train(lambda: WandbTracker("logpx", None, 20.0, 20.0), run, [0, 1, 2], resumed=False)
        time.sleep(1.1)  # wandb names its folders by the second
        train(lambda: WandbTracker("logpx", None, 20.0, 20.0), run, [3, 4], resumed=True)
    finally:
        wandb.teardown()
    assert not caplog.records
    first, second = (list(wandb_records(path)) for path in sorted(run.glob("wandb/offline-run-*/*.wandb")))
    assert list(wandb_values(first, "train/nll_bpd")) == [(0, 10.0), (1, 9.0), (2, 8.0)]
    assert list(wandb_values(second, "train/nll_bpd")) == [(3, 7.0), (4, 6.0)]
    runs = [r.run for r in first + second if r.WhichOneof("record_type") == "run"]
    assert {(r.run_id, r.display_name, r.project) for r in runs} == {((run / "wandb.id").read_text(), run.name, "logpx")}
    width = {u.key: u.value_json for r in runs for u in r.config.update}["model"]
    assert width == '{"width":8}'
    for records in (first, second):
        summaries = [u for r in records if r.WhichOneof("record_type") == "summary" for u in r.summary.update]
        assert "2.5" in [u.value_json for u in summaries if "test/nll_bpd" in (u.key, *u.nested_key)]
    assert list(run.glob("wandb/offline-run-*/files/media/images/samples_*.png"))


def test_wandb_with_a_server_that_cannot_be_reached_records_offline_and_the_program_ends_well(run):
    pytest.importorskip("wandb")
    program = (
        "import sys, pathlib; from callbacks.tracker import GuardedTracker; from callbacks.trackers.wandb import WandbTracker\n"
        "t = GuardedTracker(WandbTracker('logpx', None, 3.0, 3.0), 100, 30.0)\n"
        "t.start(pathlib.Path(sys.argv[1]), {}, False); t.log({'loss': 1.5}, 0); t.finish([]); print('trained')"
    )
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)], env=os.environ | nowhere, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout == "trained\n", done.stderr
    assert done.stderr.count("wandb cannot be reached") == 1
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    assert list(wandb_values(wandb_records(path), "loss")) == [(0, 1.5)]


@pytest.mark.parametrize(
    "environment, netrc, answer",
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "0" * 40}, "", True),
        ({"WANDB_API_KEY": "0" * 40, "WANDB_MODE": "offline"}, "", False),
        ({}, "machine api.wandb.ai login user password secret", True),
        ({"WANDB_BASE_URL": "https://wandb.example.org"}, "machine api.wandb.ai login user password secret", False),
        ({}, "machine", False),
    ],
)
def test_being_logged_in_is_read_from_the_environment_and_netrc(run, monkeypatch, environment, netrc, answer):
    from callbacks.trackers.wandb import logged_in

    Path(os.environ["NETRC"]).write_text(netrc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert logged_in() is answer


def test_tensorboard_events_hold_the_curve_of_both_parts_of_a_resumed_run(run, caplog):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from callbacks.trackers.tensorboard import TensorboardTracker

    train(lambda: TensorboardTracker(30), run, [0, 1, 2], resumed=False)
    train(lambda: TensorboardTracker(30), run, [3, 4], resumed=True)
    assert not caplog.records
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/nll_bpd")] == [(s, 10.0 - s) for s in range(5)]
    assert [e.value for e in events.Scalars("final/test/nll_bpd")] == [2.5, 2.5]
    assert {(e.step, e.width, e.height) for e in events.Images("samples")} == {(2, 8, 4), (4, 8, 4)}


def test_mlflow_database_holds_one_run_with_the_curve_of_both_parts(run, caplog):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    from callbacks.trackers.mlflow import MlflowTracker

    train(lambda: MlflowTracker("logpx", None), run, [0, 1, 2], resumed=False)
    train(lambda: MlflowTracker("logpx", None), run, [3, 4], resumed=True)
    assert not [r for r in caplog.records if r.name.startswith("callbacks")]
    client = MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    (kept,) = client.search_runs([client.get_experiment_by_name("logpx").experiment_id])
    assert kept.info.run_name == run.name and kept.info.status == "FINISHED"
    assert kept.data.params == {"model.width": "8", "seed": "1"}
    assert kept.data.metrics["final/test/nll_bpd"] == 2.5
    history = client.get_metric_history(kept.info.run_id, "train/nll_bpd")
    assert sorted((m.step, m.value) for m in history) == [(s, 10.0 - s) for s in range(5)]
    assert [f.path for f in client.list_artifacts(kept.info.run_id, "pictures/samples")] == ["pictures/samples/step.png"]
