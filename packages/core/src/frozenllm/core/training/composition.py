"""Hydra: composing a domain's config, and saying in one sentence what is wrong with it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Container, Sequence

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

VERSION_BASE = "1.3"
CONFIG_ERRORS = (HydraException, OmegaConfBaseException)

# Hydra's launchers that this project's build on, and the extras that bring them.
_LAUNCHERS = {"submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}


def compose_config(package: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Compose ``config.yaml`` of a config package, as the command line does.

    Args:
        package: Importable package with the config files, such as ``frozenllm.vision2d.conf``.
        overrides: In Hydra's grammar: ``["llm=none", "optim.lr=1e-3"]``.

    Returns:
        The config, with the chosen recipe's name under ``recipe``.

    Raises:
        ValueError: An override names something that does not exist.
    """
    importlib.import_module(package)
    known = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()  # the command line's own composition, which goes on afterwards
    try:
        with initialize_config_module(package, version_base=VERSION_BASE):
            cfg = compose("config", overrides=list(overrides), return_hydra_config=True)
    except CONFIG_ERRORS as error:
        raise ValueError(one_sentence(error)) from error
    finally:
        if known is not None:
            GlobalHydra.instance().initialize(known)
    recipe = cfg.hydra.runtime.choices.get("recipe")
    with open_dict(cfg):
        del cfg["hydra"]
    return with_recipe(cfg, recipe)


def with_recipe(cfg: DictConfig, recipe: str | None) -> DictConfig:
    """Note the chosen recipe's name, which is part of the run folder's path."""
    with open_dict(cfg):
        cfg.recipe = recipe or "default"
    return cfg


def check_types(cfg: DictConfig, package: str, overrides: Sequence[str], groups: Container[str]) -> None:
    """Refuse what is no number, list or flag where the config has one, whichever domain's key it is.

    Args:
        cfg: The composed config.
        package: The config package, with ``pkg://`` before it or not.
        overrides: Those that it was composed with.
        groups: Names of the config groups.

    Raises:
        ValueError: An override gives such a value; the sentence names its key.
    """
    keys = {text: text.partition("=")[0] for text in overrides}
    values = [key for key in keys.values() if key[:1] not in ("+", "~") and key not in groups]
    if not values:
        return
    chosen = [text for text, key in keys.items() if key.lstrip("+~").partition("@")[0] in groups]
    usual = compose_config(package.removeprefix("pkg://"), chosen)
    for key in values:
        try:
            before, now = OmegaConf.select(usual, key), OmegaConf.select(cfg, key)
        except OmegaConfBaseException:  # `resolve` says what is missing
            continue
        if _is_number(before) and isinstance(now, str | bool):
            raise ValueError(f"{key} must be a number, not {now!r}.")
        if isinstance(before, bool) and isinstance(now, str | int | float) and not isinstance(now, bool):
            raise ValueError(f"{key} must be true or false, not {now!r}.")
        if isinstance(before, ListConfig) and isinstance(now, str | bool | int | float):
            raise ValueError(f"{key} must be a list such as [{now}], not {now!r}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def resolve(cfg: DictConfig) -> DictConfig:
    """A copy without interpolations.

    Raises:
        ValueError: A value that has to be given is missing.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = getattr(error, "full_key", None) or str(error).splitlines()[0]
        raise ValueError(f"The value of {key} is missing: give {key}=...") from error
    except OmegaConfBaseException as error:
        missing = re.search(r"Missing mandatory value: ([\w.]+)", str(error))  # what another value refers to
        if missing:
            raise ValueError(f"The value of {missing[1]} is missing: give {missing[1]}=...") from error
        raise ValueError(one_sentence(error)) from error
    assert isinstance(plain, dict)
    return OmegaConf.create(plain)


def one_sentence(error: BaseException) -> str:
    """What a config error means for whoever typed the command."""
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if extra := _LAUNCHERS.get(option) if group == "hydra/launcher" else None:
            return f"This launcher needs the extra [{extra}]: pip install 'frozenllm-core[{extra}]'."
        choices = sorted(name for name in error.options or () if not name.startswith("_"))
        if choices:
            return f"There is no {group}={option}; choose one of: {', '.join(choices)}."
        return f"There is no config {error.missing_cfg_file}."
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match.group(1)
        if "No match in the defaults list" in text:
            return f"There is no config group {key.partition('@')[0]!r}: see --help for the groups."
        return f"There is no config key {key!r}: see --cfg job for the keys, or write +{key}=... to add one."
    if match := re.match(r"Interpolation key '([^']+)' not found", text):
        key = getattr(error, "full_key", None) or "A key"
        return f"{key} refers to {match[1]}, which this config does not have: its config groups do not go together."
    if match := re.match(r"LexerNoViableAltException: (.*)", text):
        key, _, value = match[1].partition("=")
        return f"{match[1]} cannot be read: put such a value in two kinds of quotes, '{key}=\"{value}\"'."
    if match := re.match(r"Error parsing override '([^']*)'\nmissing EQUAL", text):
        return f"{match[1]!r} says nothing: write key=value."
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = getattr(error, "__cause__", None)
    more = [line.strip() for line in str(cause).splitlines()[:1]] if cause is not None else []
    return " ".join([*lines[:2], *(m for m in more if m not in lines)])
