"""A tracker that remembers its calls and misbehaves where it is told to."""

import threading

from callbacks.tracker import Tracker


class FakeTracker(Tracker):
    """``trouble`` maps a method's name to an exception to raise, or to an Event to wait for before going on."""

    def __init__(self, trouble=None):
        self.trouble = trouble or {}
        self.calls = []

    def _call(self, method, *arguments):
        trouble = self.trouble.get(method)
        if isinstance(trouble, threading.Event):
            trouble.wait()
        elif trouble is not None:
            raise trouble
        self.calls.append((method, *arguments))

    def start(self, folder, config, resumed):
        self._call("start", folder, config, resumed)

    def log(self, values, step):
        self._call("log", values, step)

    def image(self, name, path, step):
        self._call("image", name, path, step)

    def finish(self, records):
        self._call("finish", records)
