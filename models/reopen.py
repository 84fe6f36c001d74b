"""Reopening a run from its own record, never from today's ``conf/``: its model, its data, and evaluators to judge it."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from models import checkpoints
from models.build import ConfigError, instantiate
from models.folder import read_config
from models.seeding import seed_all


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
    load_weights(model, state["model"], folder)
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


def load_weights(model, state: dict, folder: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"the checkpoint in {folder} does not fit the model of its config.yaml: {reason}") from error


def launched(*names: str) -> int | None:
    """The first of these numbers that torchrun or SLURM put in the environment; None in a process that nobody launched."""
    return next((int(os.environ[name]) for name in names if name in os.environ), None)


def leave_group() -> None:
    """End this process's part in distributed work, if it has any: threads of an open group can abort an exiting process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def device_of(config: dict) -> torch.device:
    """Where a run's evaluation happens: this rank's GPU if the trainer may use one."""
    if config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", launched("LOCAL_RANK", "SLURM_LOCALID") or 0)
    return torch.device("cpu")


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
