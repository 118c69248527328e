"""The command that trains a run again, checked against the run's own config."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from frozenllm.core.report.runs import Run
from frozenllm.core.training.composition import compose_config, resolve

_NOT_ASKED = ("resume", "overwrite", "sweep", "recipe", "eval_only")
_PLAIN = re.compile(r"[A-Za-z_./][\w./:-]*")
_LONGEST = 20  # overrides


def command(run: Run) -> str | None:
    """The command line that composes a run's config.

    Args:
        run: The run.

    Returns:
        None where there is no short one: the config's package is gone or has changed since.
    """
    package = f"{run.modules[0]}.conf"
    base = [f"{key}={value}" for key, value in (("recipe", run.config.get("recipe")), ("llm", _llm(run))) if value]
    wanted = _flat({key: value for key, value in run.config.items() if key not in _NOT_ASKED})
    for start in (base, base[:1], []):
        overrides = _overrides(package, start, wanted)
        if overrides is not None and len(overrides) <= _LONGEST:
            words = ["python", "-m", run.config["imports"][0], *overrides]
            return " ".join(map(shlex.quote, words))
    return None


def _llm(run: Run) -> str | None:
    return run.config["llm"].get("name")


def _overrides(package: str, start: list[str], wanted: Mapping[str, Any]) -> list[str] | None:
    """``start`` and what else it takes to compose a config; None where that does not lead there."""
    composed = _composed(package, start)
    if composed is None:
        return None
    more = [f"{key}={_value(value)}" for key, value in wanted.items() if key in composed and composed[key] != value]
    more += [f"+{key}={_value(value)}" for key, value in wanted.items() if key not in composed]
    overrides = [*start, *more]
    again = composed if not more else _composed(package, overrides)
    # What only the newer config has, has a default.
    return overrides if again is not None and wanted.items() <= again.items() else None


def _composed(package: str, overrides: list[str]) -> dict[str, Any] | None:
    try:
        cfg = resolve(compose_config(package, overrides))
    except Exception:  # the package may be gone, or another version of it; the page then says so
        return None
    plain = OmegaConf.to_container(cfg)
    assert isinstance(plain, dict)
    return _flat({str(key): value for key, value in plain.items() if key not in _NOT_ASKED})


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; an empty mapping is a value."""
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    return {k: v for key, entry in value.items() for k, v in _flat(entry, f"{prefix}.{key}" if prefix else key).items()}


def _value(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(entry)}" for key, entry in value.items()) + "}"
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in ("null", "true", "false", "nan", "inf"):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
