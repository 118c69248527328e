"""`Engine`: mmengine's runner with this project's devices, files and checkpoints."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from frozenllm.core.training import checkpoint as files
from frozenllm.core.training.distributed import average_buffers, bare, on_main, wrap
from frozenllm.core.training.ema import EMA
from frozenllm.core.training.faults import writing
from frozenllm.core.training.finite import check_weights
from frozenllm.core.training.registry import RUNNERS
from frozenllm.core.training.sync_bn import synchronize_batch_norm


@RUNNERS.register_module()
class Engine(Runner):
    """Built with ``Engine.from_cfg(config)`` from a dict of mmengine's shape.

    Besides mmengine's keys, ``config["engine"]`` holds ``device``, ``strategy``, ``sync_bn``, ``compile`` and
    ``console``, and ``config["engine_meta"]`` what checkpoints say about the run.
    """

    @property
    def options(self) -> dict[str, Any]:
        """The entries of ``config["engine"]``."""
        return self.cfg["engine"]

    @property
    def timestamp(self) -> str:
        """Empty: the run folder holds the log itself, not a folder per start."""
        return ""

    @property
    def sharded(self) -> bool:
        """Whether FSDP has sharded the model."""
        return self.options["strategy"] == "fsdp"

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.work_dir)

    @property
    def bare_model(self) -> nn.Module:
        """The task, without DDP around it."""
        return bare(self.model)

    def build_logger(self, log_level: int | str = "INFO", log_file: str | None = None, **kwargs: Any) -> MMLogger:
        """Log to the console and to ``train.log``, mmengine's own remarks to neither unless they warn."""
        logger = super().build_logger(log_level, log_file or str(self.folder / "train.log"), **kwargs)
        for handler in logger.handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%m-%d %H:%M:%S"))
            handler.addFilter(_quiet)
            if isinstance(handler, logging.FileHandler):
                handler.handleError = _log_refused(Path(handler.baseFilename))  # type: ignore[method-assign, assignment]
            elif isinstance(handler, logging.StreamHandler):
                handler.setStream(sys.stdout)
                if not self.options["console"]:
                    handler.setLevel(logging.WARNING)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the task to its device, compile its module, and wrap it for several processes."""
        device = torch.device(self.options["device"])
        model = model.to(device)
        if self.options["sync_bn"] and self.distributed:
            model = synchronize_batch_norm(model, device)
        if self.options["compile"]:
            compile_options = self.options["compile"]
            module = model.get_submodule("model")
            module.compile(**(compile_options if isinstance(compile_options, dict) else {}))
        return wrap(model, self.options["strategy"], device, **(model_wrapper_cfg or {}))

    def _init_model_weights(self) -> None:
        """Nothing: mmengine would call ``init_weights`` of hosts whose pretrained weights are loaded."""

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Nothing: ``environment.json`` holds it."""

    def dump_config(self) -> None:
        """Nothing: ``config.yaml`` holds it."""

    def save(self, path: Path, epoch: int, iteration: int, **extra: Any) -> None:
        """Write a checkpoint; called by all processes.

        Args:
            path: The file.
            epoch: Epochs that are complete.
            iteration: Iterations that are complete.
            extra: Plain values or tensors to add.

        Raises:
            CannotWrite: The system refuses; the file that was there before is untouched.
            NotFinite: A weight is infinite or no number.
        """
        average_buffers(self.bare_model)  # the file has one process's buffers, and resuming gives them to all
        meta = {"epoch": epoch, "iter": iteration, "seed": self.seed, **self._identity()}
        checkpoint: dict[str, Any] = {
            "format": files.FORMAT,
            "meta": {**meta, "config": self.cfg["engine_meta"]["config"]},
            "state_dict": files.model_state(self.bare_model, self.sharded),
            "optimizer": files.optimizer_state(self.bare_model, self.optim_wrapper, self.sharded),
            "param_schedulers": [scheduler.state_dict() for scheduler in self.param_schedulers or []],
            **extra,
        }
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        on_main(lambda: self._write(checkpoint, path))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        check_weights(checkpoint)
        with writing(path):
            files.write_checkpoint(checkpoint, path)

    def load_or_resume(self) -> None:
        """Continue from, or start with, the checkpoint that the config names."""
        if self._load_from is None or self._has_loaded:
            return
        self._has_loaded: bool = True
        path = Path(self._load_from)
        checkpoint = files.read_checkpoint(path)
        files.load_model_state(self.bare_model, checkpoint["state_dict"], path, self.sharded)
        if self._resume:
            self._continue_from(checkpoint, path)
        elif self._train_loop is None:
            self.call_hook("after_load_checkpoint", checkpoint=checkpoint)

    def _continue_from(self, checkpoint: dict[str, Any], path: Path) -> None:
        meta = checkpoint["meta"]
        for key, now in self._identity().items():
            if meta[key] != now:
                raise ValueError(
                    f"{path} was written with {key}={meta[key]}, this run has {now}: a run is resumed with the same "
                    "number of processes, batch size and data."
                )
        if meta["seed"] != self.seed:
            raise ValueError(f"{path} was written with runtime.seed={meta['seed']}, this run has {self.seed}.")
        self.train_loop._epoch, self.train_loop._iter = meta["epoch"], meta["iter"]
        files.load_optimizer_state(self.bare_model, self.optim_wrapper, checkpoint["optimizer"], path, self.sharded)
        for scheduler, state in zip(self.param_schedulers or [], checkpoint["param_schedulers"], strict=True):
            scheduler.last_step = state["last_step"]  # the rest is the config's: closed form
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        self.logger.info(f"resumed at epoch {self.epoch}, iteration {self.iter}, from {path}")

    def _identity(self) -> dict[str, int]:
        """What must be the same for iterations to mean the same."""
        counts = {key: self.cfg["engine_meta"][key] for key in ("world_size", "batch_size", "accumulate")}
        return {**counts, "samples": len(self.train_dataloader.dataset)}

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Refused: mmengine's own way would unpickle its message hub, which may run code.

        Raises:
            RuntimeError: Always; `load_or_resume` does it, for ``resume=true``.
        """
        raise RuntimeError("The engine resumes through its config: resume=true.")

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """For mmengine's hooks: as `save`, at the current iteration."""
        self.save(Path(out_dir) / filename, self.epoch, self.iter)

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The weights and their moving average, safely read; nothing of where the run stood."""
        checkpoint = files.read_checkpoint(filename)
        files.load_model_state(self.bare_model, checkpoint["state_dict"], filename, self.sharded)
        for hook in self.hooks:
            if isinstance(hook, EMA):
                hook.after_load_checkpoint(self, checkpoint)
        return checkpoint


def _log_refused(path: Path) -> Callable[[logging.LogRecord], None]:
    """What to do when the log cannot be written; `logging` would print a traceback and go on."""

    def raise_it(record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        assert error is not None  # it is called while one is handled
        with writing(path):
            raise error

    return raise_it


def _quiet(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or "mmengine" not in Path(record.pathname).parts
