"""Evaluate a run from its own record, or tabulate runs: python evaluate.py run=runs/NAME evaluators=[nll] (see README.md)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from models.build import ConfigError
from models.compose import explain
from models.reopen import evaluate_run, leave_group


def evaluate_command(config: dict) -> bool:
    """What ``evaluate.py run=...`` does; whether every check among the evaluators passed."""
    from models.folder import read_config
    from models.report import write_report
    from models.table import format_records

    folder = Path(config["run"])
    weights = config["weights"]
    if weights is None:
        weights = "raw" if read_config(folder)["callbacks"]["ema"]["decay"] is None else "ema"
    if not config["evaluators"]:
        raise ConfigError("choose at least one evaluator: evaluators=[nll]")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo")
    records = evaluate_run(
        folder, weights, config["split"], config["evaluators"], config["checkpoint"], data_root=config["data_root"]
    )
    if int(os.environ.get("RANK", 0)) == 0:
        write_report(folder)
        print(format_records(records), flush=True)
        print(f"records: {folder / 'results.json'}, pictures: {folder / 'samples'}, page: {folder / 'report.html'}", flush=True)
    failed = [record["metric"] for record in records if record.get("passed") is False]
    if failed:
        print(f"error: the audit of {folder} failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return not failed


def table_command(config: dict) -> str:
    """What ``evaluate.py table=...`` prints."""
    from models.table import table

    filled = table(config["table"], Path(config["runs_dir"]))
    forms = {"markdown": filled.markdown, "latex": filled.latex, "html": filled.html}
    if config["format"] not in forms:
        raise ConfigError(f"format={config['format']} is unknown: choose from {', '.join(forms)}")
    return forms[config["format"]]()


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    """Exit codes: 1 if an audit failed, 2 for a mistake on the command line."""
    plain = OmegaConf.to_container(config, resolve=True)
    table = plain.get("table")
    try:
        if (plain["run"] is None) == (table is None):
            raise ConfigError("say what to evaluate: run=runs/NAME, or table=NAME for a comparison of runs")
        if table is not None:
            print(table_command(plain), flush=True)
        elif not evaluate_command(plain):
            sys.exit(1)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed as Hydra would
    try:
        main()
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        leave_group()
