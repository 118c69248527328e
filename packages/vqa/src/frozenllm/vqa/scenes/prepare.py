"""ScanNet's scans made ready for training: ``python -m frozenllm.vqa.scenes.prepare SCANS OUT``.

Writes the arrays of SQA3D's code, ``OUT/<id>_{vert,aligned_vert,sem_label,ins_label,bbox,aligned_bbox}.npy``, and
``OUT/report.json``. Every file appears whole or not at all, and scans that have all six are not done again: a run that
was stopped goes on with the same command. Broken scans are named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from frozenllm.core.training import errors_in_a_sentence
from frozenllm.core.whole_files import write_text
from frozenllm.vqa.scenes.arrays import ARRAYS, read_scene
from frozenllm.vqa.scenes.files import FORMATS, SPLITS, sqa3d_questions
from frozenllm.vqa.scenes.scannet import LABELS, read_labels, scan_arrays

_SCAN = re.compile(r"scene\d{4}_\d{2}")


def prepare(
    scans: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    questions: str | None = None,
    format: str = "sqa3d",
    on_error: str = "skip",
    workers: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads scans and writes their arrays.

    Args:
        scans: The folder of the scans' folders, ``scene0000_00`` and so on.
        out: The folder of the arrays.
        labels: ScanNet's table of labels; None to look for it in ``scans`` and the folder above.
        questions: SQA3D's folder, to prepare no more than the scans that are asked about (650 of 1513).
        format: Of the questions, see `frozenllm.vqa.scenes.files`.
        on_error: ``"skip"`` to name broken scans in the report, ``"raise"`` to stop at the first.
        workers: Processes; 0 for this one.
        progress: Show a bar with an estimate.

    Returns:
        What ``report.json`` holds: ``ready`` (number), ``new`` (number of those written now) and ``broken``
        (scan -> reason).

    Raises:
        ValueError: Scans or labels are missing, or an option is unknown; with ``on_error="raise"``, a scan is broken.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"--on-error must be raise or skip, not {on_error!r}.")
    if workers < 0:
        raise ValueError(f"--workers must be 0 or more, not {workers}.")
    source, target = Path(scans).expanduser(), Path(out).expanduser()
    names = _names(source, questions, format)
    table = read_labels(_labels(source, labels))
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{target} cannot be made ({error.strerror}): name another folder.") from error
    for scratch in target.glob(".scene*.npy"):
        scratch.unlink()  # of a run that was killed
    todo = [name for name in names if not _is_ready(target, name)]
    broken: dict[str, str] = {}
    work = partial(_convert, source=source, target=target, labels=table)
    with tqdm(total=len(names), initial=len(names) - len(todo), unit="scan", disable=not progress) as bar:
        for name, reason in _each(work, todo, workers):
            if reason is not None:
                if on_error == "raise":
                    raise ValueError(f"{reason.removesuffix('.')}; repair or remove the scan, or give --on-error skip.")
                broken[name] = reason
                bar.set_postfix(broken=len(broken))
            bar.update()
    report = {"ready": len(names) - len(broken), "new": len(todo) - len(broken), "broken": dict(sorted(broken.items()))}
    write_text(target / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def _names(scans: Path, questions: str | None, format: str) -> list[str]:
    if not scans.is_dir():
        raise ValueError(f"The folder of scans {scans} does not exist.")
    if questions is not None:
        return sorted({q.scene_id for split in SPLITS for q in sqa3d_questions(questions, split, format=format)})
    names = sorted(entry.name for entry in scans.iterdir() if entry.is_dir() and _SCAN.fullmatch(entry.name))
    if not names:
        raise ValueError(f"{scans} holds no scans: it must have folders such as scene0000_00.")
    return names


def _labels(scans: Path, labels: str | os.PathLike[str] | None) -> Path:
    if labels is not None:
        return Path(labels).expanduser()
    for folder in (scans, scans.resolve().parent):
        if (folder / LABELS).is_file():
            return folder / LABELS
    raise ValueError(f"{LABELS} is neither in {scans} nor in the folder above: name ScanNet's table with --labels.")


def _is_ready(target: Path, name: str) -> bool:
    """All six files are there, and none of them is cut off."""
    try:
        for part in ARRAYS:
            np.load(target / f"{name}_{part}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return True


def _convert(name: str, source: Path, target: Path, labels: Mapping[str, int]) -> tuple[str, str | None]:
    """Convert a scan; the reason if it is broken."""
    try:
        arrays = scan_arrays(source / name, labels)
        for part in ARRAYS:
            np.save(target / f".{name}_{part}.npy", arrays[part])
        read_scene(target, f".{name}")  # what has been written can be read, and holds together
        for part in ARRAYS:
            os.replace(target / f".{name}_{part}.npy", target / f"{name}_{part}.npy")
    except ValueError as error:
        return name, str(error)
    return name, None


def _each(work: Any, names: Sequence[str], workers: int) -> Iterator[tuple[str, str | None]]:
    if not workers:
        yield from map(work, names)
        return
    pool = ProcessPoolExecutor(workers)
    try:
        yield from pool.map(work, names)
    finally:  # also at a stop by the user: what has not begun, does not begin
        pool.shutdown(cancel_futures=True)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m frozenllm.vqa.scenes.prepare", description="Makes ScanNet's scans ready for training."
    )
    parser.add_argument("scans", help="folder of the scans' folders, scene0000_00 and so on")
    parser.add_argument("out", help="folder of the arrays; one that was begun is gone on with")
    parser.add_argument("--labels", help=f"ScanNet's {LABELS}; looked for in SCANS and above if not given")
    parser.add_argument("--questions", help="SQA3D's folder: prepare only the scans that are asked about")
    parser.add_argument("--format", choices=FORMATS, default="sqa3d", help="of the questions")
    parser.add_argument("--on-error", choices=("skip", "raise"), default="skip", help="about broken scans")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: only this one")
    options = vars(parser.parse_args(argv))
    with errors_in_a_sentence(goes_on=True):
        report = prepare(options.pop("scans"), options.pop("out"), **options)
    print(
        f"{report['ready']} of {report['ready'] + len(report['broken'])} scans are ready, {report['new']} of them new"
    )
    for name, reason in list(report["broken"].items())[:10]:
        print(f"left out {name}: {reason}")
    if len(report["broken"]) > 10:
        print(f"and {len(report['broken']) - 10} more: see report.json")


if __name__ == "__main__":
    main()
