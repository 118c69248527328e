"""A trained model out of its run folder, and its predictions for a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from frozenllm.core.training import DATASETS, FUNCTIONS, MODELS, folder_of_run, read_run
from frozenllm.core.training.checkpoint import load_model_state
from frozenllm.core.training.distributed import pick_device
from frozenllm.core.training.settings import import_registrations, model_settings
from frozenllm.core.training.values import check_values
from frozenllm.motion.task import MotionTask


@dataclass
class Trained:
    """A run's model, ready to predict.

    Attributes:
        cfg: The run's config, with the changes that were asked for.
        task: In eval mode, on its device.
        device: That device.
        checkpoint: The file that the weights are from.
    """

    cfg: DictConfig
    task: MotionTask
    device: torch.device
    checkpoint: Path

    @property
    def folder(self) -> Path:
        """The run's folder; of a checkpoint that lies elsewhere, the one that it lies in."""
        return folder_of_run(self.checkpoint)

    def dataset(self, split: str) -> Dataset:
        """The run's validation data, of another split.

        Raises:
            ValueError: There is no such split.
        """
        settings: dict[str, Any] = OmegaConf.to_container(self.cfg.data.val, resolve=True)  # type: ignore[assignment]
        return DATASETS.build({**settings, "split": split})

    def batches(self, split: str) -> DataLoader:
        """The split in order, in the batches of the run's validation."""
        return DataLoader(
            self.dataset(split),
            batch_size=self.cfg.data.val_batch_size or self.cfg.data.batch_size,
            num_workers=self.cfg.runtime.workers,
            collate_fn=FUNCTIONS.get(self.cfg.data.collate),
        )

    def move(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """A batch on the model's device."""
        return self.task.data_preprocessor(dict(batch), False)

    @torch.no_grad()
    def predict(self, split: str, progress: bool = True) -> Iterator[dict[str, Any]]:
        """Predictions sample by sample, see `MotionTask.predict`.

        Args:
            split: Of the data.
            progress: Show a bar.
        """
        batches = self.batches(split)
        for batch in tqdm(batches, desc=f"predicting {split}", disable=not progress):
            yield from self.task(**self.move(batch), mode="predict")


def load_trained(run: str | Path, overrides: Sequence[str] = ()) -> Trained:
    """Read a finished run.

    Args:
        run: The run folder, or one of its checkpoints.
        overrides: See `frozenllm.core.training.SavedRun.change`.

    Raises:
        ValueError: There is no such run, it is not one of motion forecasting, or a change names no key of its config.
    """
    saved = read_run(run).change(overrides)
    cfg = saved.cfg
    check_values(cfg)
    import_registrations(cfg)
    device = pick_device(cfg.runtime.device)
    settings: dict[str, Any] = OmegaConf.to_container(cfg.task, resolve=True)  # type: ignore[assignment]
    task = MODELS.build({**settings, "model": model_settings(cfg), "precision": cfg.runtime.precision})
    if not isinstance(task, MotionTask):
        kind = cfg.model.get("type")
        raise ValueError(f"{saved.path} is of a run of the model {kind!r}, not of motion forecasting.")
    load_model_state(task, saved.state, saved.path)
    return Trained(cfg, task.to(device).eval(), device, saved.path)


def as_batch(sample: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A sample's inputs as a batch of one."""
    return {name: value[None].to(device) for name, value in sample.items()}
