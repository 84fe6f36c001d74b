"""One run from its plain config: open its folder, train or go on, evaluate, report; and reopen it later from its own record.

``python -m models.run runs/NAME`` does the same for a folder that holds a ``config.yaml``: it is what each rank of a
run with several devices executes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import torch
import yaml

from models import checkpoints
from models.build import ConfigError, check_target, instantiate, targets
from models.nn.data_init import initialize
from models.report import write_report
from models.seeding import isolated, seed_all

EXIT_STOPPED = 75
"""Exit code of a run that was asked to stop (SIGTERM, Ctrl-C) and saved: the same command goes on (EX_TEMPFAIL)."""

INIT_EXAMPLES = 256
"""Examples that data-dependent initialisation looks at, as in the released Glow."""


@dataclass
class Outcome:
    """How a run ended: ``state`` is finished, stopped or failed."""

    name: str
    state: str
    folder: Path
    message: str = ""


# --- the folder ---------------------------------------------------------------------------------------------------


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
        checkpoints.write_atomically(folder / "config.yaml", yaml.safe_dump(config, sort_keys=False, width=120).encode())
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


def _write_state(folder: Path, state: str, message: str = "") -> None:
    checkpoints.write_atomically(folder / "status.json", json.dumps({"state": state, "message": message}).encode())


# --- building -----------------------------------------------------------------------------------------------------


class TrainStream:
    """The training batches from ``start`` to ``stop`` as this rank sees them; what Lightning iterates once."""

    def __init__(self, datamodule, start: int, stop: int, trainer):
        self.datamodule, self.start, self.stop, self.trainer = datamodule, start, stop, trainer

    def __iter__(self):
        return iter(self.datamodule.train_batches(self.start, self.stop, self.trainer.global_rank, self.trainer.world_size))


def build_model(config: dict):
    """(model, datamodule) as the config has them, the model's weights drawn from the run's seed."""
    datamodule = instantiate(config["data"])
    seed_all("build", config["seed"])
    return instantiate(config["model"]), datamodule


def load_run(folder: Path, weights: str, checkpoint: str = "last", data_root: str | None = None):
    """(model, datamodule, config, step) of a run, from its own record and never from today's ``conf/``.

    ``weights`` is raw or ema; ``checkpoint`` is last or best; ``data_root`` is where the data lies now, if not where the
    run found it. The model is on the CPU in eval mode. Raises ConfigError with one line.
    """
    folder = Path(folder)
    config = read_config(folder)
    if data_root is not None:
        config["data"]["root"] = data_root
    if checkpoint == "best":
        state = checkpoints.load(folder / "checkpoints" / "best.ckpt")
    else:
        state = checkpoints.load_newest(folder / "checkpoints")
    if state is None:
        raise ConfigError(f"{folder} has no checkpoint yet: train it with {' '.join(config['command'])}")
    model, datamodule = build_model(config)
    _load_weights(model, state["model"], folder)
    if weights == "ema":
        if not state["ema"]:
            raise ConfigError(f"{folder} keeps no averaged weights (callbacks.ema.decay is null): use weights=raw")
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in state["ema"].items():
                parameters[name].copy_(value)
    elif weights != "raw":
        raise ConfigError(f"weights must be raw or ema; got {weights!r}")
    return model.eval(), datamodule, config, state["step"]


def _load_weights(model, state: dict, folder: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the checkpoint in {folder} does not fit the model of its config.yaml: {reason}") from error


def launched(*names: str) -> int | None:
    """The first of these numbers that torchrun or SLURM put in the environment; None in a process that nobody launched."""
    return next((int(os.environ[name]) for name in names if name in os.environ), None)


def device_of(config: dict) -> torch.device:
    """Where a run's evaluation happens: this rank's GPU if the trainer may use one."""
    if config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", launched("LOCAL_RANK", "SLURM_LOCALID") or 0)
    return torch.device("cpu")


# --- training -----------------------------------------------------------------------------------------------------


def num_steps(trainer: dict, batches_per_epoch: int) -> int:
    """Optimizer steps of the run: ``max_steps`` or ``max_epochs``, whichever is given; the smaller if both are."""
    limits = []
    if trainer["max_steps"] is not None:
        limits.append(int(trainer["max_steps"]))
    if trainer["max_epochs"] is not None:
        limits.append(ceil(trainer["max_epochs"] * batches_per_epoch / trainer["accumulate"]))
    if not limits or min(limits) < 1:
        raise ConfigError("set trainer.max_steps or trainer.max_epochs to at least 1")
    return min(limits)


def fit(folder: Path, config: dict) -> str:
    """Train the run in ``folder`` to its end, from its newest whole checkpoint if it has one: 'finished' or 'stopped'."""
    return train(folder, config, *build_model(config))


def train(folder: Path, config: dict, model, datamodule) -> str:
    """``fit`` of a model and a datamodule that are built already. One whose batches end early leaves the run 'stopped'."""
    import pytorch_lightning as pl

    from callbacks.base import for_lightning
    from callbacks.tracker import Tracker

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    # Lightning sets this for processes that fork, which none of ours does; with it every optimizer step loads the GPU's driver library.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    settings = config["trainer"]
    max_steps = num_steps(settings, datamodule.batches_per_epoch)
    seed = config["seed"]
    # Lightning deep-copies nothing here: the model is handed over as an object, the rest of the node is built around it.
    system = instantiate({**config["system"], "_partial_": True})(
        model=model, seed=seed, max_steps=max_steps, accumulate=settings["accumulate"]
    )
    parts = {name: instantiate(node) for name, node in config["callbacks"].items()}

    restored = checkpoints.load_newest(folder / "checkpoints")
    if restored is not None:
        _load_weights(model, restored["model"], folder)
        system.load_state_dict(restored["objectives"], strict=False)
        system.batches, system.skipped = restored["batches"], restored["skipped"]
        for name, state in restored["callbacks"].items():
            parts[name].load_state_dict(state)
    else:
        with isolated("initialize", seed):
            batches = list(datamodule.train_batches(0, ceil(INIT_EXAMPLES / datamodule.batch_size)))
            y = None if batches[0][1] is None else torch.cat([y for _, y in batches])
            initialize(model, torch.cat([x for x, _ in batches]), y)
    if config["compile"]:
        model.compile()

    trainer = pl.Trainer(
        max_epochs=1,
        accelerator=settings["accelerator"],
        devices=settings["devices"],
        num_nodes=settings["num_nodes"],
        strategy=_strategy(system, settings),
        precision=settings["precision"],
        accumulate_grad_batches=settings["accumulate"],
        deterministic="warn" if settings["deterministic"] else False,
        callbacks=for_lightning(parts.values()),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        use_distributed_sampler=False,
    )
    torch.utils.deterministic.fill_uninitialized_memory = False  # only determinism is wanted, not the cost of blanking buffers
    chief = trainer.global_rank == 0
    tracker = instantiate(config["tracker"]) if chief else Tracker()
    if chief:
        (folder / "samples").mkdir(exist_ok=True)
    if restored is not None:
        system.load_rank_state(restored["ranks"], trainer.global_rank)
    _connect(parts, folder, config, datamodule, tracker, system, restored, chief)
    tracker.start(folder, config, restored is not None)
    if system.step < max_steps:
        stream = TrainStream(datamodule, system.batches, max_steps * settings["accumulate"], trainer)
        trainer.fit(system, stream)
    if system.step < max_steps:
        tracker.finish([])
        return "stopped"
    if parts["checkpoint"].failed:
        raise RuntimeError(parts["checkpoint"].failed)
    conclude(folder, config, tracker, chief)
    return "finished"


def _strategy(system, settings: dict):
    from pytorch_lightning.strategies import DDPStrategy

    if settings["devices"] == 1 and settings["num_nodes"] == 1:
        return "auto"
    # A replay buffer or an initialised flag must not be overwritten by rank 0's; players leave parameters unused.
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=not system.automatic_optimization)


def _connect(parts: dict, folder: Path, config: dict, datamodule, tracker, system, restored: dict | None, chief: bool) -> None:
    seed, every = config["seed"], config["trainer"]["val_every"]
    parts["record"].connect(folder, tracker, system.step, chief)
    parts["skipped"].connect(folder)
    parts["validate"].connect(folder, datamodule, seed, every, parts["record"], parts["ema"])
    parts["samples"].connect(folder, seed, tracker, parts["ema"])
    stateful = {name: parts[name] for name in ("ema", "record", "validate")}
    parts["checkpoint"].connect(folder, parts["validate"], stateful, restored)
    parts["progress"].connect(parts["record"], "nll_bpd" if datamodule.spec.levels else "nll_nats")


def conclude(folder: Path, config: dict, tracker, chief: bool) -> None:
    """Evaluate the finished run from its checkpoint as a later reader would, and write results.json and report.html."""
    from models.table import format_records

    records = []
    evaluators = config["evaluators"]
    for weights in ("ema", "raw") if config["callbacks"]["ema"]["decay"] is not None else ("raw",):
        records += evaluate_run(folder, weights, "test", evaluators, config["checkpoint"], data_root=config["data"]["root"])
        evaluators = {k: v for k, v in evaluators.items() if not check_target(v["_target_"]).about_data}
    if chief:
        tracker.finish(records)
        print(format_records(records), flush=True)


def evaluate_run(
    folder: Path, weights: str, split: str, evaluators: dict, checkpoint: str = "last", progress: bool = True,
    data_root: str | None = None,
) -> list[dict]:  # fmt: skip
    """Reopen a run and judge it: ``evaluators`` are config nodes by name. Every rank calls it; rank 0 writes results.json.

    Raises ConfigError with one line.
    """
    from models.evaluators.base import Context, evaluate

    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed:
        torch.distributed.barrier()  # rank 0 may still be writing the checkpoint
    model, datamodule, config, step = load_run(folder, weights, checkpoint, data_root)
    try:
        datamodule.split(split)
    except ValueError as error:  # files that are missing or damaged, or no such split
        raise ConfigError(" ".join(str(error).split())) from error
    device = device_of(config)
    context = Context(
        model=model.to(device), datamodule=datamodule, split=split, folder=Path(folder), seed=config["seed"], weights=weights,
        rank=torch.distributed.get_rank() if distributed else 0, world=torch.distributed.get_world_size() if distributed else 1,
        device=device, progress=progress, about={"model": config["choices"]["model"], "step": step, "checkpoint": checkpoint},
    )  # fmt: skip
    return evaluate(context, {name: instantiate(node) for name, node in evaluators.items()})


def headline(folder: Path) -> str:
    """The first number of a run's results in a few words, for a line in a summary."""
    from models.evaluators.results import read_results

    record = next(iter(read_results(folder)), None)
    return "" if record is None else f"{record['metric']} {record['value']:.4f} {record['unit']} ({record['kind']}, {record['weights']})"


# --- the command --------------------------------------------------------------------------------------------------


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
        _write_state(folder, "running")
        try:
            state = _launch(folder, config) if _needs_processes(config) else fit(folder, config)
        except Exception as error:
            if new and isinstance(error, ValueError) and not (folder / "checkpoints").exists():
                shutil.rmtree(folder)
                raise
            _write_state(folder, "failed", " ".join(str(error).split()))
            (folder / "error.txt").write_text(traceback.format_exc())
            write_report(folder)
            raise
        _write_state(folder, state)
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
        _write_state(folder, state)
    return 0


if __name__ == "__main__":
    sys.exit(main())
