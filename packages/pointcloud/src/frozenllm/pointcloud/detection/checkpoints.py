"""`SafeCheckpoints`: mmengine's checkpoints hold plain values, and are resumed without unpickling code.

mmengine 0.10.7 writes its message hub into every checkpoint and cannot read it back with ``weights_only=True``. The
model's part needs nothing: a frozen block is not in the state dict, its record is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import BaseLoop
from torch import nn

from frozenllm.core.block import llm_blocks
from frozenllm.core.training.checkpoint import RECORD_KEY, load_model_state, place
from frozenllm.core.training.distributed import bare, is_main
from frozenllm.core.training.faults import RunStopped, remove_halves
from frozenllm.core.training.folder import write_text
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
    - They are written aside and renamed, so that a run which is killed or finds no room keeps its earlier ones; the
      file ``last_checkpoint`` always names one that is there.
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

    def before_run(self, runner: Any) -> None:
        """Take the runner's writing of checkpoints over, and clear up after a run that was killed."""
        only_one = False
        for hook in runner.hooks:
            if isinstance(hook, CheckpointHook) and hook.max_keep_ckpts == 1:
                only_one, hook.max_keep_ckpts = True, 2  # mmengine deletes the old one before it writes the new one
        runner.save_checkpoint = partial(save_aside, runner.save_checkpoint, only_one)
        if is_main():
            remove_halves(Path(runner.work_dir))
            renew_pointer(Path(runner.work_dir))

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


def save_aside(
    save: Callable[..., None], only_one: bool, out_dir: str, filename: str, *args: Any, **kwargs: Any
) -> None:
    """mmengine's ``Runner.save_checkpoint``, under a temporary name that is then replaced.

    Args:
        save: The runner's own method.
        only_one: Delete the older ones then; the best ones have other names.
        out_dir: Folder; an address such as ``s3://...`` is left to mmengine.
        filename: The file in it.
        args: For ``save``.
        kwargs: For ``save``.

    Raises:
        RunStopped: The file cannot be written; the sentence names the last good one.
    """
    if "://" in str(out_dir):
        save(out_dir, filename, *args, **kwargs)
        return
    path = Path(out_dir) / filename
    temporary = path.with_name(f".{filename}.{os.getpid()}.tmp")
    try:
        save(out_dir, temporary.name, *args, **kwargs)
        if is_main():
            place(temporary, path)
            numbered = written(path.parent)
            if only_one and path in numbered:
                for old in set(numbered) - {path}:
                    old.unlink()
    except OSError as error:
        numbered = written(path.parent)
        last = f"the last good checkpoint is {numbered[-1]}" if numbered else "no checkpoint had been written yet"
        raise RunStopped(
            f"{path} cannot be written ({error.strerror or error}): training stopped, and {last}; make room there and "
            "continue with --resume."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def written(folder: Path) -> list[Path]:
    """Checkpoints of mmengine's `CheckpointHook` in a folder, oldest first."""
    return sorted([*folder.glob("epoch_*.pth"), *folder.glob("iter_*.pth")], key=lambda path: path.stat().st_mtime_ns)


def renew_pointer(folder: Path) -> None:
    """Let ``last_checkpoint`` name the newest checkpoint, should a run have been killed before it did."""
    pointer, numbered = folder / "last_checkpoint", written(folder)
    if numbered and not (pointer.exists() and pointer.read_text().strip() == str(numbered[-1])):
        write_text(pointer, str(numbered[-1]))


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
