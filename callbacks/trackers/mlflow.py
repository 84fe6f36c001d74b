"""MLflow with an embedded SQLite file beside the run folders: `mlflow ui --backend-store-uri sqlite:///runs/mlflow.db`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from callbacks.tracker import Tracker, require, summary
from models.checkpoints import write_atomically


class MlflowTracker(Tracker):
    """One MLflow run a run folder, its id in ``mlflow.id``; ``uri`` null means ``mlflow.db`` next to the run folder."""

    def __init__(self, experiment: str, uri: str | None):
        require("mlflow", "mlflow")
        self.experiment = experiment
        self.uri = uri

    def start(self, folder: Path, config: dict, resumed: bool) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(self.uri or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}")
        kept = folder / "mlflow.id"
        if kept.exists():
            self.id = kept.read_text().strip()
            self.client.update_run(self.id, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.experiment)
        place = (folder.resolve() / "mlflow").as_uri()
        experiment = found.experiment_id if found else self.client.create_experiment(self.experiment, artifact_location=place)
        self.id = self.client.create_run(experiment, run_name=folder.name).info.run_id
        write_atomically(kept, self.id.encode())
        for name, value in flat(config).items():
            self.client.log_param(self.id, name, value)

    def log(self, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()])

    def image(self, name: str, path: Path, step: int) -> None:
        self.client.log_artifact(self.id, str(path), f"pictures/{name}")

    def finish(self, records: list[dict]) -> None:
        for name, value in summary(records).items():
            self.client.log_metric(self.id, f"final/{name}", value)
        self.client.set_terminated(self.id)


def flat(config: dict, prefix: str = "") -> dict[str, str]:
    """Nested keys joined with dots, values as text."""
    found = {}
    for name, value in config.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return found
