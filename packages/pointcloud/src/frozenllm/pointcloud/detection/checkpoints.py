"""`SafeCheckpoints`: mmengine's checkpoints hold plain values, and are resumed without unpickling code.

mmengine 0.10.7 writes its message hub into every checkpoint and cannot read it back with ``weights_only=True``. The
model's part needs nothing: a frozen block is not in the state dict, its record is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop
from torch import nn

from frozenllm.core.block import llm_blocks
from frozenllm.core.training.checkpoint import RECORD_KEY, load_model_state
from frozenllm.core.training.distributed import bare
from frozenllm.core.training.registry import HOOKS
from frozenllm.core.training.seeding import derive_seed, seed_everything

RUNTIME = "runtime_info"
_PLAIN = (str, bool, int, float, type(None))


@HOOKS.register_module()
class SafeCheckpoints(Hook):
    """Keeps checkpoints plain and resuming strict; name it under ``custom_hooks`` as ``frozenllm.SafeCheckpoints``.

    - The message hub stays out. Of its values those stay that mmengine's `CheckpointHook` needs to go on: the best
      figure and file, the files it keeps.
    - Arrays in ``meta`` become lists.
    - Resuming and testing refuse a checkpoint of another model or another block, where mmengine warns. One that is
      given as a start (``load_from``) may lack parts, such as the frozen layer.

    Args:
        seed_epochs: Seed the generators from (seed, epoch) at the start of each epoch, so that a run that was stopped
            after an epoch and resumed ends with the weights of an uninterrupted one (without persistent workers), and
            from the seed at the start of each evaluation. Needs ``randomness.seed`` in the config.
    """

    priority = "VERY_LOW"  # after every hook that adds something to a checkpoint

    def __init__(self, seed_epochs: bool = True) -> None:
        self.seed_epochs = seed_epochs

    def before_train_epoch(self, runner: Any) -> None:
        """Seed, and forget which objects KITTI's database sampler has given out."""
        if self.seed_epochs:
            seed_everything(derive_seed(runner.seed, "epoch", runner.epoch, runner.rank))
            renew_samplers(runner.train_loop.dataloader.dataset)

    def before_val_epoch(self, runner: Any) -> None:
        """Seed: some test pipelines sample points."""
        if self.seed_epochs:
            seed_everything(derive_seed(runner.seed, "evaluation"))

    before_test_epoch = before_val_epoch

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Leave out what is not plain."""
        info = checkpoint.pop("message_hub", {}).get(RUNTIME, {})
        checkpoint[RUNTIME] = {key: plain(value) for key, value in info.items() if _wanted(key)}
        checkpoint["meta"] = plain(checkpoint["meta"])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Verify, and give mmengine the parts that it insists on."""
        for key, value in checkpoint.get(RUNTIME, {}).items():
            runner.message_hub.update_info(key, value)
        checkpoint["message_hub"] = runner.message_hub.state_dict()
        self._same_meta(runner, checkpoint)
        model = bare(runner.model)
        starts = isinstance(runner._train_loop, BaseLoop) and not runner._resume  # in testing it is a config still
        if not starts:
            load_model_state(model, checkpoint["state_dict"], runner._load_from or "The checkpoint")
        else:
            check_records(model, checkpoint.get("state_dict", checkpoint))

    @staticmethod
    def _same_meta(runner: Any, checkpoint: dict[str, Any]) -> None:
        # mmengine compares pickles, and would warn about a list in an array's place.
        loop = runner._train_loop
        data = getattr(getattr(getattr(loop, "dataloader", None), "dataset", None), "metainfo", None)
        meta = checkpoint.get("meta", {})
        if data is not None and meta.get("dataset_meta") == plain(data):
            meta["dataset_meta"] = data


def renew_samplers(dataset: Any) -> None:
    """Give the database samplers of mmdet3d's ``ObjectSample`` a new order: theirs goes on from epoch to epoch."""
    while hasattr(dataset, "dataset"):  # RepeatDataset and other wrappers
        dataset = dataset.dataset
    for step in getattr(getattr(dataset, "pipeline", None), "transforms", ()):
        samplers = getattr(getattr(step, "db_sampler", None), "sampler_dict", {})
        for name, old in samplers.items():
            samplers[name] = type(old)(old._sampled_list, name, shuffle=old._shuffle)


def check_records(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise where a state dict was made with another block than the model holds.

    Raises:
        ValueError: It was.
    """
    for name, block in llm_blocks(model):
        record = state.get(f"{name}.{RECORD_KEY}")
        if record is not None:
            block.set_extra_state(record)


def plain(value: Any) -> Any:
    """A value that ``torch.load(weights_only=True)`` reads: arrays become lists, other objects text."""
    if isinstance(value, Mapping):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if type(value) in (list, tuple):
        return type(value)(plain(entry) for entry in value)
    if isinstance(value, _PLAIN):
        return value if type(value) in _PLAIN else type(value).__mro__[-2](value)
    return [plain(entry) for entry in value] if hasattr(value, "__iter__") else str(value)


def _wanted(key: str) -> bool:
    return key.startswith("best_") or key in ("last_ckpt", "keep_ckpt_ids")
