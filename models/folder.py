"""The run folder: the config it was made with, who holds it, and how far it got."""

from __future__ import annotations

import contextlib
import fcntl
import json
from pathlib import Path

import yaml

from models.build import ConfigError, check_target, targets
from models.checkpoints import write_atomically


def read_config(folder: Path) -> dict:
    """The config a run was made with, its targets checked. Raises ConfigError if there is none."""
    path = Path(folder) / "config.yaml"
    if not path.exists():
        raise ConfigError(f"there is no run in {folder}: {path} does not exist")
    config = yaml.safe_load(path.read_text())
    if not isinstance(config, dict) or not {"model", "data", "system"} <= set(config):
        raise ConfigError(f"{path} is not the config of a logpx run: it has no model, data and system")
    for target in targets(config):
        check_target(target)
    return config


def open_folder(config: dict) -> Path:
    """Make ``runs_dir/name`` and its ``config.yaml``; the config of a run that exists already stays as it was."""
    folder = Path(config["runs_dir"]) / config["name"]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.yaml").exists():
        write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=120).encode())
    return folder


@contextlib.contextmanager
def locked(folder: Path):
    """Hold the run folder alone; ConfigError if another process has it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"{folder} is being trained by another process: wait for it, or change the seed") from error
        yield


def read_state(folder: Path) -> str:
    """finished, stopped, failed, running (killed or still going) or new."""
    path = folder / "status.json"
    return json.loads(path.read_text())["state"] if path.exists() else "new"


def write_state(folder: Path, state: str, message: str = "") -> None:
    write_atomically(folder / "status.json", json.dumps({"state": state, "message": message}).encode())
