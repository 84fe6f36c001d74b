"""Build parts from plain config, and nothing else: every ``_target_`` must be a class of this project or of a named library."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator

from hydra.utils import instantiate as _instantiate

ALLOWED = ("models", "datamodules", "callbacks", "torch.optim", "torch.nn", "pytorch_lightning")
"""Packages whose classes a config may name. The class itself must be defined there, not merely be reachable from there."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


class ConfigError(ValueError):
    """A mistake in the configuration or on the command line; its message is one line that says what to do."""


def _within(module: str) -> bool:
    return any(module == name or module.startswith(name + ".") for name in ALLOWED)


def check_target(target: str) -> type:
    """The class that ``target`` names, or a ConfigError if it is not on the allow-list."""
    if not isinstance(target, str) or not _DOTTED.fullmatch(target) or not _within(target):
        raise ConfigError(f"_target_ {target!r} is refused: it must name a class in one of {', '.join(ALLOWED)}")
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"_target_ {target!r} cannot be imported: {error}") from error
    if not inspect.isclass(found) or not _within(found.__module__):
        raise ConfigError(f"_target_ {target!r} is refused: it leads to {found!r}, which is no class of {', '.join(ALLOWED)}")
    return found


def targets(node) -> Iterator[str]:
    """Every ``_target_`` in a nested config, depth first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def instantiate(node: dict, **overrides):
    """Hydra's ``instantiate`` for a resolved plain config, after every target in it has passed ``check_target``."""
    for target in targets(node):
        check_target(target)
    try:
        return _instantiate(node, **overrides, _convert_="all")
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, (ValueError, TypeError)):
            raise ConfigError(" ".join(str(cause).split())) from cause
        raise
