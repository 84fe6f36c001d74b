"""evaluate.py on a run that was trained: the same numbers again, on any number of ranks, and one line for each mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException

import evaluate
from models import checkpoints
from models.build import ConfigError
from models.compose import explain
from models.reopen import evaluate_run
from models.run import run
from tests.conftest import ROOT, compose, run_program

NLL = {"nll": {"_target_": "models.evaluators.nll.NLL"}}
COMMAND = {"weights": None, "split": "test", "evaluators": NLL, "checkpoint": "last", "data_root": None}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    return run(compose("model=vae", "debug=tiny", "data.eval_batch_size=5", f"runs_dir={folder}")).folder


def records(folder: Path) -> dict[str, dict]:
    return {item["metric"]: item for item in json.loads((folder / "results.json").read_text())}


def test_the_same_number_again(trained):
    before = records(trained)
    assert evaluate.evaluate_command(COMMAND | {"run": str(trained)})
    after = records(trained)
    assert list(after) == list(before) and after["nll_bpd"]["value"] == before["nll_bpd"]["value"]
    assert after["nll_bpd"]["model"] == "vae" and after["nll_bpd"]["data"] == "digits" and after["nll_bpd"]["step"] > 0


def test_two_ranks_count_each_example_once(trained):
    """16 examples in four batches: the same number as on one rank, also from a model with noise."""
    alone = records(trained)["nll_bpd"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "evaluate.py")]
    done = subprocess.run([*command, f"run={trained}", "evaluators=[nll,audit]"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    together = records(trained)
    assert together["nll_bpd"]["count"] == alone["count"]
    assert together["nll_bpd"]["value"] == pytest.approx(alone["value"], rel=1e-12)
    assert together["audit_failed"]["value"] == 0


def test_what_a_model_cannot_answer_is_one_line(tmp_path):
    folder = run(compose("model=made", "debug=tiny", "order=random", "order.num=2", f"runs_dir={tmp_path}")).folder
    done = run_program("evaluate.py", f"run={folder}", "evaluators=[complete]", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: completing needs one order, and this model averages 2 of them\n"


def test_a_mistake_on_the_command_line_is_one_line(tmp_path):
    done = run_program("evaluate.py", "run=runs/nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: there is no run in runs/nothing: runs/nothing/config.yaml does not exist\n"


def test_unknown_evaluators_are_told_the_known_ones():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"), pytest.raises(HydraException) as caught:
        hydra_compose("evaluate", ["run=x", "evaluators=[nll,nonsense]"])
    told = explain(caught.value)
    assert told.startswith("there is no evaluators=nonsense: choose from ais, ") and " audit, baseline, " in told and "\n" not in told


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weights": "ema"}, "use weights=raw"),
        ({"weights": "best"}, "must be raw or ema"),
        ({"split": "training"}, "train, val, test"),
        ({"evaluators": {}}, "choose at least one evaluator"),
        ({"evaluators": {"ais": {"_target_": "os.system"}}}, "refused"),
    ],
)
def test_mistakes(trained, changes, message):
    with pytest.raises(ConfigError, match=message):
        evaluate.evaluate_command(COMMAND | {"run": str(trained)} | changes)


def test_a_run_without_a_checkpoint(trained, tmp_path):
    (tmp_path / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    with pytest.raises(ConfigError, match="has no checkpoint yet: train it with python train.py"):
        evaluate_run(tmp_path, "raw", "test", NLL)


def test_the_run_is_its_own_record(trained, tmp_path):
    """The model is built from the folder's config.yaml: another width there does not fit the weights."""
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["model"]["latent_dim"] += 1
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    checkpoints.save(tmp_path / "checkpoints" / "step_00000001.ckpt", checkpoints.load_newest(trained / "checkpoints"))
    with pytest.raises(ConfigError, match="does not fit"):
        evaluate_run(tmp_path, "raw", "test", NLL)


def test_a_failed_audit_fails_the_command(trained, monkeypatch, capsys):
    broken = {"metric": "audit_log_det_error", "value": 1.0, "stderr": None, "unit": "relative", "kind": "exact", "count": 1}
    monkeypatch.setattr("evaluate.evaluate_run", lambda *_, **__: [broken | {"passed": False}])
    assert not evaluate.evaluate_command(COMMAND | {"run": str(trained)})
    assert "failed: audit_log_det_error" in capsys.readouterr().err
