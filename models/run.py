"""The command: one run from its plain config, in this process or in one process a device.

``python -m models.run runs/NAME`` does the same for a folder that holds a ``config.yaml``: it is what each rank of a
run with several devices executes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from models.folder import locked, open_folder, read_config, read_state, write_state
from models.reopen import launched
from models.report import write_report
from models.training import fit

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop (SIGTERM, Ctrl-C) and saved: the same command goes on (EX_TEMPFAIL)."""


@dataclass
class Outcome:
    """How a run ended: ``state`` is finished, stopped or failed."""

    name: str
    state: str
    folder: Path
    message: str = ""


def run(config: dict) -> Outcome:
    """Train or go on with the run of ``config``, unless it is finished. Raises what went wrong, after noting it in the folder.

    A mistake that shows before the first checkpoint of a new run leaves no folder behind. Under torchrun or srun every rank
    calls it; the folder is rank 0's business.
    """
    if launched("RANK", "SLURM_PROCID"):
        folder = Path(config["runs_dir"]) / config["name"]
        finished = read_state(folder) == "finished"
        return Outcome(config["name"], "finished" if finished else fit(folder, config), folder)
    new = not (Path(config["runs_dir"]) / config["name"]).exists()
    folder = open_folder(config)
    if read_state(folder) == "finished":
        from models.evaluators.results import read_results
        from models.table import format_records

        print(f"{folder} is finished:\n{format_records(read_results(folder))}", flush=True)
        return Outcome(config["name"], "finished", folder, "was finished already")
    print(f"run folder: {folder}", flush=True)
    with locked(folder):
        write_state(folder, "running")
        try:
            state = _launch(folder, config) if _needs_processes(config) else fit(folder, config)
        except Exception as error:
            if new and isinstance(error, ValueError) and not (folder / "checkpoints").exists():
                shutil.rmtree(folder)
                raise
            write_state(folder, "failed", " ".join(str(error).split()))
            (folder / "error.txt").write_text(traceback.format_exc())
            write_report(folder)
            raise
        write_state(folder, state)
        write_report(folder)
    if state == "stopped":
        print(f"stopped and saved; the same command goes on: {' '.join(config['command'])}", flush=True)
    else:
        print(f"samples, curves and the page: {folder / 'report.html'}", flush=True)
    return Outcome(config["name"], state, folder)


def _needs_processes(config: dict) -> bool:
    """Whether this process must start one for each device: several are wanted and no launcher has done it."""
    return config["trainer"]["devices"] not in (1, "1") and launched("LOCAL_RANK", "SLURM_LOCALID") is None


def _launch(folder: Path, config: dict) -> str:
    """One process a device, each reading the stored config: the command line is composed only once."""
    devices = config["trainer"]["devices"]
    count = torch.cuda.device_count() if devices in ("auto", -1) else int(devices)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={max(1, count)}"]
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    process = subprocess.Popen([*command, "-m", "models.run", str(folder)], env=environment)
    previous = {number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    state = read_state(folder)
    if state in ("finished", "stopped"):
        return state
    raise RuntimeError(f"the processes of {folder} ended with code {code}; their messages stand above")


def main() -> int:
    """Worker entry: train the run in the folder given as the only argument."""
    folder = Path(sys.argv[1])
    state = fit(folder, read_config(folder))
    if int(os.environ.get("RANK", 0)) == 0:
        write_state(folder, state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
