"""TensorBoard event files in the run folder: `tensorboard --logdir runs`."""

from __future__ import annotations

from pathlib import Path

from callbacks.tracker import Tracker, require, summary


class TensorboardTracker(Tracker):
    """Scalars, pictures and final records in ``tensorboard/`` of the run folder; a resumed run adds a file there."""

    def __init__(self, flush_seconds: int):
        require("tensorboard", "tensorboard")
        self.flush_seconds = flush_seconds
        self.step = 0

    def start(self, folder: Path, config: dict, resumed: bool) -> None:
        import yaml
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"), flush_secs=self.flush_seconds)
        indented = yaml.safe_dump(config, sort_keys=False).replace("\n", "\n    ")
        self.writer.add_text("config", "    " + indented)

    def log(self, values: dict[str, float], step: int) -> None:
        self.step = step
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def image(self, name: str, path: Path, step: int) -> None:
        import numpy
        from PIL import Image

        self.writer.add_image(name, numpy.asarray(Image.open(path).convert("RGB")), step, dataformats="HWC")

    def finish(self, records: list[dict]) -> None:
        for name, value in summary(records).items():
            self.writer.add_scalar(f"final/{name}", value, self.step)
        self.writer.close()
