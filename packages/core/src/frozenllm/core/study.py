"""What the studies of all domains have in common: the run, its validation data, the taps, the command line.

Stands above `frozenllm.core.training` and `frozenllm.core.analysis`, which know nothing of each other. A domain's
``study.py`` says what its tokens are and which of them matter::

    def study(run, *, limit=None, samples=6, weights="auto") -> Study: ...

    def main(argv=None) -> None:
        study_cli("video", study, argv)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import frozenllm.core.training  # noqa: F401 (first: it names the extra where that is missing)

# isort: split
import torch
from mmengine.model import BaseDataPreprocessor
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, default_collate
from tqdm import tqdm

from frozenllm.core.analysis import ACTIVATIONS, tapped
from frozenllm.core.analysis.findings import findings_table
from frozenllm.core.analysis.study import Study
from frozenllm.core.training import (
    DATASETS,
    FUNCTIONS,
    UNREADABLE,
    SavedRun,
    errors_in_a_sentence,
    folder_of_run,
    read_run,
)
from frozenllm.core.training.data import SeededDataset
from frozenllm.core.training.distributed import pick_device
from frozenllm.core.training.settings import import_registrations

HOST, LAYER = "host", "adapter_out"
"""Taps before and after the frozen layer."""
TAPS = (HOST, "adapter_in", "attention_residual", "ffn_residual", LAYER)
"""Where studies look, in the order of the computation; see `frozenllm.core.analysis.LayerTaps`."""
WEIGHTS = "attention_weights"
"""Tap of the block's attention probabilities."""


def read_studied(run: str | Path, weights: str = "auto") -> SavedRun:
    """A finished run in float32, whatever it was trained in: activations are to be compared among runs.

    Args:
        run: The run folder, or one of its checkpoints.
        weights: See `frozenllm.core.training.read_run`.

    Raises:
        ValueError: See `frozenllm.core.training.read_run`.
    """
    saved = read_run(run, weights)
    saved.cfg.runtime.precision = "fp32"
    import_registrations(saved.cfg)
    return saved


def validation_data(saved: SavedRun, role: str = "val") -> Dataset:
    """The data that a run was evaluated with.

    Args:
        saved: The run.
        role: Key of its group ``data``.

    Raises:
        ValueError: The data cannot be read, or there is none of that role.
    """
    settings = OmegaConf.to_container(saved.cfg.data, resolve=True).get(role)  # type: ignore[union-attr]
    if not settings:
        raise ValueError(f"{saved.path} is of a run without data.{role}.")
    return DATASETS.build(dict(settings))


def spread_indices(size: int, limit: int | None) -> list[int]:
    """Indices of at most ``limit`` samples, spread evenly: data sets are often sorted by class.

    Raises:
        ValueError: The limit is not positive.
    """
    if limit is None or limit >= size:
        return list(range(size))
    if limit < 1:
        raise ValueError(f"The limit must be 1 or more, not {limit}.")
    return [place * size // limit for place in range(limit)]


Batch = tuple[list[int], dict[str, Any]]
"""Indices into the validation data, and their samples collated: a mapping with ``inputs`` and ``targets``."""


def opened(saved: SavedRun, limit: int | None, samples: int) -> tuple[Any, Any, set[int], Iterator[Batch]]:
    """What a study works on.

    Args:
        saved: The run, from `read_studied`.
        limit: At most so many samples, see `spread_indices`.
        samples: How many of them become pictures, spread evenly too.

    Returns:
        The model, in eval mode on the device that the run computes on; the validation data; the indices of the samples
        that become pictures; and all studied samples in batches on that device, as the run's own evaluation made them,
        under a progress bar.

    Raises:
        ValueError: The data cannot be read, or the limit is not positive; from the batches: a sample cannot be read.
    """
    data: Any = validation_data(saved)
    model = saved.build().to(studied_device(saved))
    studied = spread_indices(len(data), limit)
    pictured = {studied[place] for place in spread_indices(len(studied), samples)} if samples else set()
    return model, data, pictured, _batches(saved, data, studied)


def _batches(saved: SavedRun, data: Dataset, studied: list[int]) -> Iterator[Batch]:
    cfg = saved.cfg
    size = int(cfg.data.val_batch_size or cfg.data.batch_size)
    loader = DataLoader(
        Subset(SeededDataset(data, cfg.runtime.seed, "val"), [(0, index, 0) for index in studied]),  # type: ignore
        batch_size=size,
        num_workers=cfg.runtime.workers,
        collate_fn=FUNCTIONS.get(cfg.data.collate) if cfg.data.collate else default_collate,
    )
    mover = BaseDataPreprocessor().to(studied_device(saved))
    with tqdm(total=len(studied), desc="studying", unit="sample", disable=not sys.stderr.isatty()) as bar:
        for number, batch in enumerate(loader):
            chosen = studied[number * size : (number + 1) * size]
            yield chosen, mover.cast_data(batch)
            bar.update(len(chosen))


def readable(batches: Iterable[Batch]) -> Iterator[tuple[list[int], Tensor, list[int]]]:
    """Of a classifier's batches, what could be read: indices, inputs (B, ...) and classes."""
    for indices, batch in batches:
        keep = (batch["targets"] != UNREADABLE).nonzero().flatten().tolist()
        if keep:
            yield [indices[place] for place in keep], batch["inputs"][keep], batch["targets"][keep].tolist()


def studied_device(saved: SavedRun) -> torch.device:
    """Where the run's config says that it computes."""
    return pick_device(saved.cfg.runtime.device)


@torch.no_grad()
def tokens_at(
    model: nn.Module,
    inputs: Any,
    *,
    layer: nn.Module | None,
    host: Callable[[], Tensor],
    taps: Sequence[str] = TAPS,
) -> tuple[Any, dict[str, Tensor]]:
    """What a model answers, and the tokens at some taps of its frozen layer.

    Args:
        model: In eval mode.
        inputs: What it takes: one argument, or a mapping of keyword arguments.
        layer: Its frozen layer; None where it has none.
        host: Gives the tokens where the layer would stand; called for a model without one.
        taps: Names of `frozenllm.core.analysis.LayerTaps`; those that the layer lacks (an MLP has no attention) are
            left out. `WEIGHTS` among them gives the attention probabilities, (B, heads, N, N).

    Returns:
        The output, and tap -> (B, N, width); the tap ``host`` alone for a model without a layer.
    """

    def call() -> Any:
        return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)

    if layer is None:
        return call(), {HOST: host()}
    with tapped(layer, attention_weights=WEIGHTS in taps) as held:
        output = call()
    return output, {name: held[name] for name in taps if name in held.names}


def study_cli(
    domain: str,
    study: Callable[..., Study],
    argv: Sequence[str] | None = None,
    doc: str | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """The command line of a domain's study: prints its findings and saves it into the run folder.

    Exits with status 1 and one sentence where the user can mend it.

    Args:
        domain: ``"video"``, ...
        study: The domain's ``study``.
        argv: Arguments; None for the process's.
        doc: What the help says.
        extra: The domain's own options, handed to ``study`` by name: ``{"rule": {"help": ...}}``, with the arguments of
            `argparse.ArgumentParser.add_argument`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m frozenllm.{domain}.study", description=doc or study.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="the run folder, or one of its checkpoints")
    parser.add_argument("--limit", type=int, help="at most so many validation samples, spread evenly (default: all)")
    parser.add_argument("--samples", type=int, default=6, help="how many samples go into the study as pictures")
    parser.add_argument("--weights", default="auto", choices=["auto", "raw", "ema"])
    for name, settings in (extra or {}).items():
        parser.add_argument(f"--{name}", **settings)
    options = parser.parse_args(argv)
    with errors_in_a_sentence():
        own = {name: getattr(options, name) for name in extra or ()}
        found = study(options.run, limit=options.limit, samples=options.samples, weights=options.weights, **own)
        folder = found.save(folder_of_run(options.run))
    print(found.title)
    print()
    print(findings_table(found.findings))
    if found.notes:
        print()
        print("\n".join(f"- {note}" for note in found.notes))
    print(f"\nwrote {folder}")


def check_counts(limit: int | None, samples: int) -> None:
    """Raise for numbers that make no study.

    Raises:
        ValueError: ``limit`` is not positive, or ``samples`` negative.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"The limit must be 1 or more, not {limit}.")
    if samples < 0:
        raise ValueError(f"The number of samples must be 0 or more, not {samples}.")


def activations_of(tokens: Mapping[str, Tensor], mask: Tensor | None = None) -> Iterator[tuple[str, str, Tensor]]:
    """Tap, kind and activation (B, N) from 0 to 1, for all taps and
    `frozenllm.core.analysis.ACTIVATIONS`.

    Args:
        tokens: From `tokens_at`, without those that should not count, such as a class token.
        mask: (B, N) bool, False = padding.
    """
    for tap, values in tokens.items():
        for kind, measure in ACTIVATIONS.items():
            yield tap, kind, measure(values, mask)


def shown_of(active: Mapping[tuple[str, str], Tensor], row: int) -> dict[str, list[float]]:
    """A sample's activations before and after the layer, and its attention, as `Sample` has them.

    Args:
        active: (tap, kind) -> (B, N), from `activations_of`.
        row: The sample's row.
    """
    return {
        f"{kind} at {tap}": values[row].tolist()
        for (tap, kind), values in active.items()
        if tap in (HOST, LAYER, WEIGHTS)
    }
