"""From Hydra's composition to the plain config of a run: shrunk, checked, resolved and named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from models.build import ConfigError, check_target, targets

SLOTS = ("order", "likelihood", "dequantization", "posterior", "prior", "sampler")
"""Groups that a model uses by referring to them; choosing one that the model does not refer to is an error."""

NOT_IDENTITY = (
    "choices", "command", "evaluators", "other", "data@other", "evaluate", "runs_dir", "tracker", "tiny", "paper", "debug",
    "hardware", "name",
)  # fmt: skip
"""What does not change the bits of a run, and so does not change its name."""


def _shrink(config: DictConfig, overrides: list[str]) -> None:
    """Merge ``tiny`` over the model and the experiment; values (not group choices) on the command line still win."""
    for key, value in config.tiny.items():
        OmegaConf.update(config, key, value, merge=True)
    for override in OverridesParser.create().parse_overrides(overrides):
        key = override.key_or_group
        if not override.is_delete() and ("." in key or OmegaConf.is_missing(config, key) or _is_value(config.get(key))):
            OmegaConf.update(config, key, override.value(), merge=True)


def _is_value(node) -> bool:
    return node is not None and not OmegaConf.is_config(node)


def _check_slots(config: DictConfig, choices: dict) -> None:
    raw = OmegaConf.to_container(config, resolve=False)
    for slot in SLOTS:
        rest = json.dumps({k: v for k, v in raw.items() if k not in (slot, "tiny")})
        if raw.get(slot) is not None and "${" + slot + "}" not in rest:
            used = [s for s in SLOTS if "${" + s + "}" in rest]
            raise ConfigError(
                f"model={choices.get('model')} has no {slot}: remove {slot}={choices.get(slot)}"
                + (f" (its slots: {', '.join(used)})" if used else " (it has no slots)")
            )


def identity(config: dict) -> str:
    """A short hash of everything that changes the bits of a run."""
    kept = {k: v for k, v in config.items() if k not in NOT_IDENTITY}
    kept["data"] = {k: v for k, v in config["data"].items() if k not in ("root", "download", "eval_batch_size")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def finalize(config: DictConfig, choices: dict, overrides: list[str], command: list[str]) -> dict:
    """The run's plain config: ``tiny`` applied under ``debug=tiny``, slots and targets checked, all resolved, named.

    Raises ConfigError with one line for an unused slot, an unresolved value or a refused target.
    """
    choices = {k: v for k, v in choices.items() if not k.startswith("hydra")}
    with open_dict(config):
        if config.get("debug") == "tiny":
            OmegaConf.set_struct(config, True)
            try:
                _shrink(config, overrides)
            except OmegaConfBaseException as error:
                raise ConfigError(f"tiny settings of model={choices.get('model')}: {str(error).splitlines()[0]}") from error
            OmegaConf.set_struct(config, False)
        _check_slots(config, choices)
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error
    for target in targets(plain):
        check_target(target)
    plain["choices"] = dict(sorted(choices.items()))
    plain["command"] = command
    who = choices.get("experiment") or f"{choices['model']}-{choices['data']}"
    plain["name"] = "-".join([who, *(["tiny"] if plain.get("debug") else []), f"s{plain['seed']}", identity(plain)])
    return plain


def explain(error: Exception) -> str:
    """One line for a mistake in the composition."""
    missing = getattr(error, "missing_cfg_file", None)
    if missing and "/" in missing:
        group, _, name = missing.rpartition("/")
        options = sorted(path.stem for path in (Path(__file__).parent.parent / "conf" / group).glob("*.yaml"))
        return f"there is no {group}={name}: choose from {', '.join(options) or 'nothing (there are none)'}"
    return " ".join(str(error).split())
