"""The programs as a user runs them: tiny runs, one-line mistakes, kills and resumes, sweeps, two ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import MODELS, ROOT, run_program

SMALL = ["debug=tiny", "runs_dir=runs"]


def only_run(folder: Path) -> Path:
    (run,) = (p for p in (folder / "runs").iterdir() if p.is_dir())
    return run


def final_bits(run: Path) -> dict:
    """What must be equal bit for bit: the last checkpoint's tensors, the metrics, the results (without clocks)."""
    newest = max((run / "checkpoints").glob("step_*.ckpt"))
    state = torch.load(newest, weights_only=True)
    results = json.loads((run / "results.json").read_text())
    for record in results:
        record.pop("seconds")
        record.pop("code")
    return {"name": newest.name, "state": state, "metrics": (run / "metrics.csv").read_text(), "results": results}


def assert_same_bits(a, b, where: str = "") -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), f"{where} differs"
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: {a.keys() ^ b.keys()}"
        for key in a:
            assert_same_bits(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}/{number}")
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} != {b}"


@pytest.mark.parametrize("name", MODELS)
def test_tiny_run(name, tmp_path):
    """A tiny run leaves the whole run folder, and evaluate.py finds the same numbers in it."""
    done = run_program("train.py", f"model={name}", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    for file in ("config.yaml", "metrics.csv", "results.json", "report.html", "status.json"):
        assert (run / file).exists(), file
    assert list((run / "samples").glob("*.png"))
    records = json.loads((run / "results.json").read_text())
    fields = {"metric", "value", "stderr", "unit", "kind", "split", "data", "data_sha256", "count", "weights", "model"}
    fields |= {"seconds", "code", "versions"}
    assert records and all(fields <= set(record) for record in records)
    again = run_program("train.py", f"model={name}", *SMALL, cwd=tmp_path)
    assert again.returncode == 0 and "is finished" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["modle=vae"], "modle"),
        (["model=vaee"], "there is no model=vaee: choose from"),
        (["model=vae", "optimizer.lrr=1"], "optimizer.lrr"),
        (["model=vae", "likelihood=bernoulli"], "likelihood=bernoulli needs data with 2 levels"),
        (["model=glow", "likelihood=bernoulli"], "model=glow has no likelihood"),
        (["model=vae", "data=mnist_static", "data.root=nowhere"], "binarized_mnist_train.amat is missing under"),
        (["model=vae", "data.batch_size=5000", "data.limit=null"], "data.batch_size=5000 is more than"),
        (["data.spec._target_=os.system"], "_target_ 'os.system' is refused"),
        (["data.spec._target_=models.run.Path"], "is refused"),
        (["trainer.max_steps=0"], "trainer.max_steps"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, tmp_path):
    done = run_program("train.py", *SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert says in line
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*")), "a mistake leaves no run folder behind"


LONG = ["debug=tiny", "runs_dir=runs", "trainer.max_steps=60", "trainer.val_every=20", "callbacks.checkpoint.every=7",
        "callbacks.record.every=9", "callbacks.ema.decay=0.9", "callbacks.samples.every=0"]  # fmt: skip


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments], cwd=cwd, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def steps_done(folder: Path) -> int:
    found = [p for p in folder.glob("runs/*/checkpoints/step_*.ckpt")]
    return max((int(p.stem.split("_")[1]) for p in found), default=0)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            return
        time.sleep(0.01)


def kill_and_resume(overrides: list[str], kills: list[int], tmp_path: Path) -> None:
    """SIGKILL the run soon after each of the checkpoints in ``kills``; what it ends with must be the uninterrupted run's bits."""
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    straight.mkdir()
    broken.mkdir()
    done = run_program("train.py", *overrides, cwd=straight)
    assert done.returncode == 0, done.stderr
    for step in kills:
        process = start(*overrides, cwd=broken)
        wait_for(lambda step=step: steps_done(broken) >= step, process)
        time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    done = run_program("train.py", *overrides, cwd=broken)
    assert done.returncode == 0, done.stderr
    assert_same_bits(final_bits(only_run(straight)), final_bits(only_run(broken)))


@pytest.mark.parametrize("name", MODELS)
def test_killed_and_resumed_is_the_same_bits(name, tmp_path):
    """Law 8, one kill each here; ``-m slow`` kills each five times."""
    kill_and_resume([f"model={name}", *LONG], [14], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_killed_five_times(name, tmp_path):
    kill_and_resume([f"model={name}", *LONG], [1, 14, 21, 35, 49], tmp_path)


def test_sigterm_saves_and_says_how_to_go_on(tmp_path):
    process = start("model=vae", *LONG, "trainer.max_steps=100000", cwd=tmp_path)
    wait_for(lambda: steps_done(tmp_path) >= 7, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert "stopped and saved; the same command goes on" in output
    run = only_run(tmp_path)
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    assert steps_done(tmp_path) % 7 or steps_done(tmp_path) > 7


def test_damaged_checkpoint_falls_back(tmp_path):
    done = run_program("train.py", "model=vae", *SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    first = final_bits(run)
    newest = run / "checkpoints" / first["name"]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    shutil.rmtree(run / "samples")
    (run / "status.json").unlink()
    again = run_program("train.py", "model=vae", *SMALL, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "is damaged" in again.stderr and "trying the checkpoint before it" in again.stderr
    assert_same_bits(first, final_bits(run))


def test_sweep_survives_a_failure_and_continues(tmp_path):
    """Four jobs, one of which fails: the others finish, the exit code says so, and a repetition runs only what is missing."""
    sweep = ["-m", "model=vae", "seed=1,2", "likelihood=discretized_logistic,bernoulli", *SMALL]
    first = run_program("train.py", *sweep, cwd=tmp_path)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "2 of 4 jobs failed" in first.stdout
    assert len(list((tmp_path / "runs").iterdir())) == 2
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/metrics.csv")}
    second = run_program("train.py", *sweep, cwd=tmp_path)
    assert second.returncode == 1
    assert second.stdout.count("was finished already") == 2
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").glob("*/metrics.csv")}


def test_reopened_under_a_changed_conf(tmp_path):
    """Law 8: evaluate.py gives the same score whatever conf/ says today, and refuses a foreign target in a run folder."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in ("conf", "models", "datamodules", "callbacks"):
        shutil.copytree(ROOT / part, copy / part)
    for part in ("train.py", "evaluate.py"):
        shutil.copy(ROOT / part, copy)
    command = [sys.executable, "train.py", "model=vae", "debug=tiny"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=copy, env=environment, check=True, capture_output=True)
    run = only_run(copy)
    before = (run / "results.json").read_text()
    (copy / "conf/model/vae.yaml").write_text("nonsense: true\n")
    evaluate = [sys.executable, "evaluate.py", f"run={run}", "evaluators=[nll]"]
    done = subprocess.run(evaluate, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values = lambda text: {(r["metric"], r["weights"]): r["value"] for r in json.loads(text)}  # noqa: E731
    assert values(before) == values((run / "results.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["decoder"]["_target_"] = "os.system"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(evaluate, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "is refused" in done.stderr


def test_foreign_checkpoint_is_refused(tmp_path):
    from models import checkpoints
    from models.build import ConfigError

    path = tmp_path / "step_00000001.ckpt"
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match="no checksum beside it"):
        checkpoints.load(path)
    checkpoints.write_atomically(path.with_name(path.name + ".sha256"), checkpoints._digest(path).encode())
    with pytest.raises(ConfigError, match="not a logpx checkpoint of format"):
        checkpoints.load(path)
    torch.save(os.system, path)
    checkpoints.write_atomically(path.with_name(path.name + ".sha256"), checkpoints._digest(path).encode())
    with pytest.raises(ConfigError, match="is not a logpx checkpoint"):
        checkpoints.load(path)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    from models import checkpoints

    checkpoints.save(tmp_path / "step_00000001.ckpt", {"x": torch.ones(3)})
    checkpoints.save(tmp_path / "best.ckpt", {"x": torch.ones(3)})

    def full(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.torch, "save", full)
    for name in ("step_00000002.ckpt", "best.ckpt"):
        with pytest.raises(OSError, match="No space left"):
            checkpoints.save(tmp_path / name, {"x": torch.zeros(3)})
    assert torch.equal(checkpoints.load_newest(tmp_path)["x"], torch.ones(3))
    assert torch.equal(checkpoints.load(tmp_path / "best.ckpt")["x"], torch.ones(3))
    assert not list(tmp_path.glob("*.part"))


def test_two_ranks(tmp_path):
    """Law 9: two processes make one folder, count each test example once, and end with one set of weights."""
    command = ["model=glow", "debug=tiny", "runs_dir=runs", "trainer.accelerator=cpu", "data.limit=24"]
    done = run_program("train.py", *command, "trainer.devices=2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run = only_run(tmp_path)
    records = json.loads((run / "results.json").read_text())
    assert {r["count"] for r in records} == {24}
    two = torch.load(max((run / "checkpoints").glob("step_*.ckpt")), weights_only=True)["model"]
    shutil.rmtree(tmp_path / "runs")
    done = run_program("train.py", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = torch.load(max((only_run(tmp_path) / "checkpoints").glob("step_*.ckpt")), weights_only=True)["model"]
    for name, value in one.items():  # dequantization noise differs by rank, so weights agree up to a few small steps
        torch.testing.assert_close(two[name].float(), value.float(), rtol=0, atol=0.02)
