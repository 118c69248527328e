"""The model of a run from one of its checkpoints, for everything that comes after training."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn
from yaml import YAMLError

from frozenllm.core.training.checkpoint import FORMAT, load_model_state, read_checkpoint
from frozenllm.core.training.settings import build_model, import_registrations

_TASK_PREFIX = "model."
_WEIGHTS = ("auto", "raw", "ema")
_MISSING: Any = object()


@dataclass
class SavedRun:
    """A checkpoint, and the config of the run that wrote it.

    Attributes:
        path: The file.
        cfg: The resolved config; it may be changed before `build`, for example ``cfg.llm.path``.
        state: Weights under the task's names.
        weights: ``"raw"`` or ``"ema"``, what ``state`` holds.
    """

    path: Path
    cfg: DictConfig
    state: dict[str, Any]
    weights: str

    @property
    def folder(self) -> Path:
        """Folder of the run; see `folder_of_run`."""
        return folder_of_run(self.path)

    def expect(self, what: str, *kinds: str) -> SavedRun:
        """Make sure that this is a run of the right model; returns itself.

        Args:
            what: What the model should be, for the error.
            kinds: Names under which `frozenllm.core.training.MODELS` has such models (``model.type``).

        Raises:
            ValueError: The model is of another kind.
        """
        kind = self.cfg.model.get("type")
        if kind not in kinds:
            raise ValueError(f"{self.path} is of a run of the model {kind!r}, not of {what}.")
        return self

    def change(self, overrides: Iterable[str]) -> SavedRun:
        """Change the config before `build`; returns itself.

        A key of the group ``data`` changes in the splits that had it from there too.

        Args:
            overrides: Such as ``data.root=/data/argoverse2`` or ``llm.path=/models/llama-7b``.

        Raises:
            ValueError: One names no key of the config.
        """
        for override in overrides:
            _change(self.cfg, override)
        return self

    def build(self) -> nn.Module:
        """The plain module with these weights, in eval mode, on the CPU.

        Raises:
            ValueError: The model cannot be built, or the weights are not its own.
        """
        if "host" in self.cfg.model:
            self.cfg.model.host = None  # its own beginnings do not matter any more
        import_registrations(self.cfg)
        model = build_model(self.cfg)
        state = {k.removeprefix(_TASK_PREFIX): v for k, v in self.state.items() if k.startswith(_TASK_PREFIX)}
        load_model_state(model, state, self.path)
        return model.eval()


def _change(cfg: DictConfig, override: str) -> None:
    key, equals, _ = override.partition("=")
    try:
        current = OmegaConf.select(cfg, key, default=_MISSING)
        if not equals or current is _MISSING or (OmegaConf.is_dict(current) and not override.endswith("}")):
            raise ValueError(
                f"{override} does not change the run's config: write key=value with a key of its config.yaml."
            )
        _follow(cfg, key, override)
        cfg.merge_with_dotlist([override])
    except (OmegaConfBaseException, YAMLError, AttributeError) as error:  # the last: omegaconf's, of some broken keys
        raise ValueError(f"{override} cannot be read as key=value with a key of the run's config.yaml.") from error


def _follow(cfg: DictConfig, key: str, override: str) -> None:
    """Change a key of the data group also in the splits that had it from there: a run's config is resolved."""
    group, _, name = key.partition(".")
    if group != "data" or name in ("train", "val", "test") or "." in name:
        return
    for role in ("train", "val", "test"):
        source = cfg.data.get(role)
        if source is not None and name in source and source[name] == cfg.data[name]:
            cfg.merge_with_dotlist([f"data.{role}.{name}={override.partition('=')[2]}"])


def read_run(path: str | Path, weights: str = "auto") -> SavedRun:
    """Read a checkpoint that the engine wrote.

    Args:
        path: The file, or the run folder, of which the last checkpoint is taken.
        weights: ``"raw"``, ``"ema"`` (the moving average), or ``"auto"``: those that the run itself was evaluated with.

    Raises:
        ValueError: There is no such checkpoint, it is damaged, or it holds no moving average.
    """
    if weights not in _WEIGHTS:
        raise ValueError(f"weights must be one of {', '.join(_WEIGHTS)}, not {weights!r}.")
    path = Path(path).expanduser()
    if path.is_dir():
        last = path / "checkpoints" / "last.pt"
        if not last.is_file():
            raise ValueError(f"{path} is not the folder of a run: it has no checkpoints/last.pt.")
        path = last
    checkpoint = read_checkpoint(path)
    cfg = OmegaConf.create(checkpoint["meta"]["config"])
    assert isinstance(cfg, DictConfig)
    if weights == "auto":
        weights = cfg.optim.ema.get("evaluate", "raw") if cfg.optim.ema else "raw"
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        if not checkpoint.get("ema"):
            raise ValueError(f"{path} holds no moving average: use weights=raw.")
        state |= checkpoint["ema"]
    return SavedRun(path, cfg, state, weights)


def folder_of_run(checkpoint: str | Path) -> Path:
    """The folder of a run, from it or one of its checkpoints; of a checkpoint elsewhere, the folder that it lies in."""
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        return path
    here = path.parent
    return here.parent if here.name == "checkpoints" else here


def is_run(path: str | Path) -> bool:
    """Whether a checkpoint is of this engine, and not of another project; a folder is taken for a run's.

    Raises:
        ValueError: See `outline`.
    """
    return Path(path).expanduser().is_dir() or is_runs(outline(path))


def is_runs(content: Any) -> bool:
    """Whether the content of a checkpoint is this engine's."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def outline(path: str | Path) -> Any:
    """What a checkpoint holds, of whichever project, its tensors without their values.

    Raises:
        ValueError: There is no such file, it is damaged, or it holds objects other than tensors and plain values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"There is no checkpoint at {path}.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # official files hold their arguments
            return torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # damaged pickles end in errors of every kind
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds objects other than tensors and plain "
            "values."
        ) from error
