"""Train a likelihood-based generative model: python train.py model=glow data=cifar10 (see README.md)."""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from models.compose import explain, finalize


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(config: DictConfig):
    """Compose, then run; in a sweep a failing job is recorded and the sweep goes on."""
    from models.run import EXIT_STOPPED, Outcome, run

    context = HydraConfig.get()
    overrides = list(context.overrides.task)
    sweeping = context.mode == RunMode.MULTIRUN
    try:
        outcome = run(finalize(config, dict(context.runtime.choices), overrides, ["python", "train.py", *overrides]))
    except Exception as error:
        known = isinstance(error, ValueError)  # a mistake that the message explains; error.txt in the run folder has the rest
        if not known and not sweeping:
            raise
        if not known:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        if not sweeping:
            sys.exit(2)
        return Outcome(" ".join(overrides), "failed", None, " ".join(str(error).split()))
    if outcome.state == "stopped":
        sys.exit(EXIT_STOPPED)
    return outcome


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed as Hydra would
    try:
        main()
    except (ValueError, HydraException, OmegaConfBaseException) as error:  # Hydra raises a bare ValueError for GROUP=null
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
