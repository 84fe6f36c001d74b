"""What README.md tells a user is true: its commands compose, its table lists what is there, its worked example runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from packaging.requirements import Requirement

from models.run import run
from tests.conftest import MODELS, ROOT, compose

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.M | re.S)
LINES = [line for language, text in BLOCKS if language == "bash" for line in text.replace("\\\n", "").splitlines()]
ADDED = dict(re.findall(r"^`([\w/.]+)`:\n\n```\w+\n(.*?)^```", README, re.M | re.S))
"""Files of the worked example: content by path."""
SLOTS = {"order", "likelihood", "dequantization", "posterior", "prior", "sampler"}


def calls(program: str) -> list[list[str]]:
    """What stands after ``program`` in the README's command lines, but for those of the worked example."""
    words = [shlex.split(line) for line in LINES]
    return [line[line.index(program) + 1 :] for line in words if program in line and "model=linear" not in line]


def jobs(arguments: list[str]) -> list[list[str]]:
    """The overrides of each job: every combination of a sweep's choices; what configures Hydra itself is left out."""
    overrides = [word for word in arguments if word != "-m" and not word.startswith("hydra")]
    if "-m" not in arguments:
        return [overrides]
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [list(job) for job in product(*([f"{o.key_or_group}={v}" for v in _choices(o)] for o in parsed))]


def _choices(override) -> list[str]:
    return list(override.sweep_string_iterator()) if override.is_sweep_override() else [override.value()]


@pytest.mark.parametrize(
    ("mark", "command"),
    [("main", "pip install -e . && python train.py"), ("test", 'pip install -e ".[test]" && pytest')],
)
def test_the_two_commands_stand_once(mark, command):
    assert README.count(f"<!-- {mark} command -->\n```bash\n{command}\n```\n") == 1
    assert LINES.count(command) == 1


@pytest.mark.parametrize("arguments", calls("train.py"), ids=" ".join)
def test_training_examples_compose(arguments):
    for job in jobs(arguments):
        config = compose(*job)
        assert config["name"]


@pytest.mark.parametrize("arguments", calls("evaluate.py"), ids=" ".join)
def test_evaluation_examples_compose(arguments):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = hydra_compose("evaluate", arguments)
    assert (config.run is None) == (config.get("table") is not None)


def test_examples_were_found():
    """The parametrized tests above cannot be empty."""
    assert len(calls("train.py")) >= 8 and len(calls("evaluate.py")) >= 4


def test_tables_list_what_is_there():
    """Every option of every group in the tables has its file, and every file is in the tables."""
    rows = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("| `")]
    groups = {first.strip(" `"): set(re.findall(r"`(\w+)`", rest[0])) for first, *rest in rows if len(rest) == 1}
    assert len(groups) >= 10
    for group, options in groups.items():
        assert options == {path.stem for path in (ROOT / "conf" / group).glob("*.yaml")}, group
    models = {row[0].strip(" `"): row for row in rows if len(row) == 5}
    assert set(models) == set(MODELS)
    for name, row in models.items():
        slots = set(row[3].replace(" ", "").split(",")) - {""}
        assert slots == {slot for slot in groups if slot in SLOTS and compose(f"model={name}")["choices"][slot]}, name


def test_files_it_points_to_exist():
    for path in re.findall(r'src="([^"]+)"', README) + re.findall(r"`((?:models|conf|results)/[\w/.]*)`", README.replace("GROUP", "model")):
        assert path in ADDED or (ROOT / path).exists(), path
    assert (ROOT / "docs/digits.png").stat().st_size < 100_000


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with the files of the worked example added."""
    copy = tmp_path_factory.mktemp("extended")
    for part in ("conf", "models", "datamodules", "callbacks", "tests"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("train.py", "evaluate.py", "pyproject.toml"):
        shutil.copy(ROOT / part, copy)
    assert set(ADDED) == {"models/autoregressive/linear.py", "conf/model/linear.yaml"}
    for path, text in ADDED.items():
        (copy / path).write_text(text)
    return copy


def in_copy(copy: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy)}
    return subprocess.run([sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=240)


def test_the_added_model_trains(extended):
    assert "python train.py model=linear debug=tiny" in LINES
    done = in_copy(extended, "train.py", "model=linear", "debug=tiny")
    assert done.returncode == 0, done.stderr
    (results,) = extended.glob("runs/linear-digits-tiny-*/results.json")
    assert {record["kind"] for record in json.loads(results.read_text()) if record["metric"] == "nll_bpd"} == {"exact"}


def test_the_added_model_obeys_the_laws(extended):
    """The suite finds it by itself; with a mask that lets pixels see themselves, the same command fails."""
    assert "pytest tests/test_laws.py -k linear" in LINES
    done = in_copy(extended, "-m", "pytest", "tests/test_laws.py", "-k", "linear")
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 9
    net = extended / "models/autoregressive/linear.py"
    leaky = net.read_text().replace("< size * size // 2", "<= size * size // 2")
    assert leaky != net.read_text()
    net.write_text(leaky)
    done = in_copy(extended, "-m", "pytest", "tests/test_laws.py", "-k", "linear and normalized")
    assert done.returncode == 1 and "1 failed" in done.stdout, done.stdout


def test_skipped_batches_are_looked_at_as_it_says(tmp_path, capsys):
    overrides = ["model=vae", "debug=tiny", f"runs_dir={tmp_path}", "system.skip_above=1.0e-9", "trainer.max_steps=1"]
    folder = run(compose(*overrides)).folder
    (batch,) = (folder / "skipped").iterdir()
    (code,) = (text for language, text in BLOCKS if language == "python" and "skipped/" in text)
    capsys.readouterr()
    exec(code.replace("runs/NAME", str(folder)).replace("step_00000123_rank_0.pt", batch.name), {})
    assert "tensor" in capsys.readouterr().out


def test_ranks_of_a_launcher_make_one_run(tmp_path):
    """``torchrun train.py``: every rank composes the same run, and the folder is rank 0's business."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py"),
               "model=glow", "debug=tiny", "trainer.accelerator=cpu", "trainer.devices=2"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"


def test_constraints_pin_every_dependency_within_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pinned = dict(line.lower().split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *extras["test"], *extras["tensorboard"], *extras["mlflow"]]]
    for requirement in wanted:
        if requirement.name != project["name"]:
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
