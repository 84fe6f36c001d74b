"""Where a run's numbers go besides its own folder, and the guard that keeps such a place from harming the run."""

from __future__ import annotations

import copy
import importlib.util
import logging
import queue
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)


class Tracker:
    """A place that follows a run. This base sends nothing anywhere (`tracker=csv`): the run folder alone keeps the record."""

    def start(self, folder: Path, config: dict, resumed: bool) -> None:
        """Open, or go on with, the run kept in ``folder``; ``config`` is its plain resolved configuration."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Add one point at ``step`` to the curve of each name."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Add the picture at ``path``."""

    def finish(self, records: list[dict]) -> None:
        """Keep the final records (results.json) and close."""


def require(package: str, extra: str) -> None:
    """Raise one clear line, before any training, when the package of a tracker is not installed."""
    if importlib.util.find_spec(package) is None:
        raise ValueError(f'this tracker needs the package {package}: pip install -e ".[{extra}]", or choose tracker=csv')


def summary(records: list[dict]) -> dict[str, float]:
    """Final records as flat names, ``test/nll_bpd`` or ``test_ema/nll_bpd`` for averaged weights, and their values."""
    flat = {}
    for record in records:
        if record["value"] is None:
            continue
        weights = "_ema" if record.get("weights") == "ema" else ""
        flat[f"{record.get('split', 'final')}{weights}/{record['metric']}"] = float(record["value"])
    return flat


class GuardedTracker(Tracker):
    """Runs ``tracker`` in a daemon thread behind a bounded queue, so that it can neither slow, change nor stop a training.

    Every call returns at once. A tracker that raises is reported once; one that cannot keep up loses entries, is reported
    once, and the end says how many. ``finish`` waits at most ``finish_seconds``. A tracker that cannot start gets nothing more.
    """

    def __init__(self, tracker: Tracker, queue_size: int, finish_seconds: float):
        self.tracker = tracker
        self.finish_seconds = finish_seconds
        self._calls = queue.Queue(queue_size)
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._name = type(tracker).__name__
        self._lock = threading.Lock()
        self._lost = 0
        self._warned = False

    def start(self, folder: Path, config: dict, resumed: bool) -> None:
        self._thread.start()
        self._send("start", folder, copy.deepcopy(config), resumed)

    def log(self, values: dict[str, float], step: int) -> None:
        self._send("log", dict(values), step)

    def image(self, name: str, path: Path, step: int) -> None:
        self._send("image", name, path, step)

    def finish(self, records: list[dict]) -> None:
        if not self._thread.is_alive():
            return
        deadline = time.monotonic() + self.finish_seconds
        try:
            self._calls.put(("finish", copy.deepcopy(records)), timeout=self.finish_seconds)
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except queue.Full:
            self._lose("does not keep up")
        with self._lock:
            self._warned = True
            late = self._thread.is_alive()
            unsent = self._lost + late * (self._calls.qsize() + 1)
        if unsent:
            when = f" within {self.finish_seconds:g} s of the end" if late else ""
            log.warning("%s: %d entries were not sent%s; the run folder has them all", self._name, unsent, when)

    def _send(self, method: str, *arguments) -> None:
        try:
            self._calls.put_nowait((method, *arguments))
        except queue.Full:
            self._lose("does not keep up")

    def _lose(self, reason: str) -> None:
        with self._lock:
            self._lost += 1
            first, self._warned = not self._warned, True
        if first:
            log.warning("%s %s; the training goes on without it, and the run folder has every number", self._name, reason)

    def _work(self) -> None:
        started = False
        while True:
            method, *arguments = self._calls.get()
            try:
                if started or method == "start":
                    getattr(self.tracker, method)(*arguments)
                    started = True
                elif method != "finish":
                    self._lose("did not start")
            except BaseException as error:  # a library that calls sys.exit in here must not end the program either
                line = (str(error).strip() or "no message").splitlines()[0]
                self._lose(f"failed in {method} ({type(error).__name__}: {line})")
            if method == "finish":
                return
