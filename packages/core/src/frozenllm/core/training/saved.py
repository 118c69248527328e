"""The model of a run from one of its checkpoints, for everything that comes after training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from frozenllm.core.training.checkpoint import load_model_state, read_checkpoint
from frozenllm.core.training.settings import build_model

_TASK_PREFIX = "model."
_WEIGHTS = ("auto", "raw", "ema")


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

    def build(self) -> nn.Module:
        """The plain module with these weights, in eval mode, on the CPU.

        Raises:
            ValueError: The model cannot be built, or the weights are not its own.
        """
        if "host" in self.cfg.model:
            self.cfg.model.host = None  # its own beginnings do not matter any more
        model = build_model(self.cfg)
        state = {k.removeprefix(_TASK_PREFIX): v for k, v in self.state.items() if k.startswith(_TASK_PREFIX)}
        load_model_state(model, state, self.path)
        return model.eval()


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
        weights = cfg.optim.ema.evaluate if cfg.optim.ema else "raw"
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        if not checkpoint.get("ema"):
            raise ValueError(f"{path} holds no moving average: use weights=raw.")
        state |= checkpoint["ema"]
    return SavedRun(path, cfg, state, weights)
