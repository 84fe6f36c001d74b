"""Training a run to its end, from wherever it stands, and the evaluation that concludes it."""

from __future__ import annotations

import logging
import os
import warnings
from math import ceil
from pathlib import Path

import torch

from models import checkpoints
from models.build import ConfigError, check_target, instantiate
from models.nn.data_init import initialize
from models.reopen import build_model, device_of, evaluate_run, leave_group, load_weights
from models.seeding import isolated

INIT_EXAMPLES = 256
"""Examples that data-dependent initialisation looks at, as in the released Glow."""


class TrainStream:
    """The training batches from ``start`` to ``stop`` as this rank sees them; what Lightning iterates once."""

    def __init__(self, datamodule, start: int, stop: int, trainer):
        self.datamodule, self.start, self.stop, self.trainer = datamodule, start, stop, trainer

    def __iter__(self):
        return iter(self.datamodule.train_batches(self.start, self.stop, self.trainer.global_rank, self.trainer.world_size))


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
    try:
        return train(folder, config, *build_model(config))
    finally:
        leave_group()


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
        load_weights(model, restored["model"], folder)
        system.load_state_dict(restored["objectives"], strict=False)
        system.batches, system.skipped = restored["batches"], restored["skipped"]
        for name, state in restored["callbacks"].items():
            parts[name].load_state_dict(state)
    else:
        with isolated("initialize", seed):
            batches = list(datamodule.train_batches(0, ceil(INIT_EXAMPLES / datamodule.batch_size)))
            y = None if batches[0][1] is None else torch.cat([y for _, y in batches])
            initialize(model, torch.cat([x for x, _ in batches]), y)
    if settings.get("channels_last"):  # runs from before the option lack it
        model.to(memory_format=torch.channels_last)
    if config["compile"]:
        compile_scoring(model, device_of(config))

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
        try:
            trainer.fit(system, stream)
        except RuntimeError as error:
            if config["compile"] and "double backward" in str(error):
                raise ConfigError("this model's score takes gradients itself, which torch.compile cannot do: set compile=false") from error
            raise
    if system.step < max_steps:
        tracker.finish([])
        return "stopped"
    if parts["checkpoint"].failed:
        raise RuntimeError(parts["checkpoint"].failed)
    conclude(folder, config, tracker, chief)
    return "finished"


def compile_scoring(model: torch.nn.Module, device: torch.device) -> None:
    """Compile ``model``'s forward, in place, for ``device``."""
    # On a CPU the compiler's own random numbers take longer than torch's; on a GPU they cost nothing.
    model.compile(options={"fallback_random": device.type == "cpu"})


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
        for picture in sorted((folder / "samples").glob("*.png")):
            if not picture.stem.startswith("step_"):  # those went out as they were drawn
                tracker.image(picture.stem, picture, records[-1]["step"] if records else 0)
        tracker.finish(records)
        print(format_records(records), flush=True)
