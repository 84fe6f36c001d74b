"""Weights & Biases: online when logged in, else offline files in the run folder (`wandb sync` sends them later)."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from pathlib import Path
from urllib.parse import urlparse

from callbacks.tracker import Tracker, require, summary
from models.checkpoints import write_atomically

log = logging.getLogger(__name__)


class WandbTracker(Tracker):
    """One wandb run a run folder. Its id lies in ``wandb.id`` there, so that a resumed run goes on in the same curve.

    Without a login, or when the server does not answer within ``connect_seconds``, the run is recorded offline.
    """

    def __init__(self, project: str, entity: str | None, connect_seconds: float, finish_seconds: float):
        require("wandb", "wandb")
        self.project = project
        self.entity = entity
        self.connect_seconds = connect_seconds
        self.finish_seconds = finish_seconds

    def start(self, folder: Path, config: dict, resumed: bool) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its exit hook waits 20 s for a server that does not answer
        import wandb

        kept = folder / "wandb.id"
        if not kept.exists():
            write_atomically(kept, secrets.token_hex(4).encode())
        options = dict(
            id=kept.read_text().strip(), project=self.project, entity=self.entity, name=folder.name, dir=folder, config=config
        )
        if logged_in():
            try:
                self.run = wandb.init(mode="online", resume="allow", settings=self._settings(wandb), **options)
                return
            except wandb.errors.Error as error:
                log.warning("wandb cannot be reached (%s); recording offline in %s", str(error).splitlines()[0], folder / "wandb")
                wandb.teardown()  # the failed attempt would keep the id
        self.run = wandb.init(mode="offline", settings=self._settings(wandb), **options)

    def _settings(self, wandb):
        """Silent, no capture of the console, and bounded waits."""
        return wandb.Settings(
            console="off", silent=True, init_timeout=self.connect_seconds, login_timeout=self.connect_seconds,
            finish_timeout=self.finish_seconds,
        )  # fmt: skip

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path))}, step=step)

    def finish(self, records: list[dict]) -> None:
        self.run.summary.update(summary(records))
        self.run.finish()


def logged_in() -> bool:
    """Whether an API key for the chosen server is in the environment or in netrc (no request is made)."""
    if os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled"):
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    path = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    try:
        return path.exists() and netrc.netrc(str(path)).authenticators(host) is not None
    except netrc.NetrcParseError:
        return False
