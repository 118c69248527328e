"""Something-Something V2 as published, made ready for training: ``python -m frozenllm.video.prepare``.

Every video is decoded to its end, and those that cannot be are named in ``report.json`` and left out. What is done is
noted in ``done.jsonl``: a run that was stopped goes on where it was, with the same command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from frozenllm.core.training import errors_in_a_sentence
from frozenllm.core.whole_files import write_text
from frozenllm.video.convert import FORMS, Conversion, convert
from frozenllm.video.data.annotations import LabeledVideo, read_annotations
from frozenllm.video.data.files import read_annotated_videos
from frozenllm.video.data.frames import HEADER

PARTS = {"train": "train", "validation": "val"}
"""Annotation files, and the names of their lists."""
_PREFIX = "something-something-v2-"  # the annotation files have it in older downloads


def prepare(
    annotations: str | os.PathLike[str],
    videos: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    to: str = "frames",
    height: int | None = None,
    quality: int = 95,
    crf: int = 18,
    workers: int = 0,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Checks and stores all videos of the training and validation parts, and writes annotations and lists of them.

    Args:
        annotations: Folder of the official ``labels.json``, ``train.json`` and ``validation.json``.
        videos: Folder of the ``<id>.webm``.
        out: The new folder; one that an earlier call with the same settings has begun is gone on with.
        to: ``"frames"``: images and pytorchvideo's frame lists. ``"mp4"``: H.264 and VideoMAE's lists. ``"lists"``:
            VideoMAE's lists of the videos as they are.
        height: Height in pixels; None for the videos' own.
        quality: Of JPEG, up to 100.
        crf: Of H.264: 0 is without loss.
        workers: Processes; 0 for this one.
        limit: Take the first videos of each part only.
        progress: Show a bar with an estimate.

    Returns:
        What ``report.json`` holds: how many videos there are by part, and those that are broken with the reason.

    Raises:
        ValueError: The annotations or the videos are missing or of another format, or the folder holds something else.
    """
    if to not in FORMS:
        raise ValueError(f"--to must be one of {', '.join(FORMS)}, not {to!r}.")
    ranges = {"height": (height, 1, None), "quality": (quality, 1, 100), "crf": (crf, 0, 51)}
    ranges |= {"workers": (workers, 0, None), "limit": (limit, 1, None)}
    for name, (value, least, most) in ranges.items():
        if value is not None and (value < least or (most is not None and value > most)):
            raise ValueError(f"--{name} must be {f'{least} to {most}' if most else f'{least} or more'}, not {value}.")
    folder = Path(annotations)
    labels = _annotation(folder, "labels")
    files: dict[str, str] = {}
    parts: dict[str, list[LabeledVideo]] = {}
    for part in PARTS:
        source = read_annotated_videos(labels, _annotation(folder, part), videos, decoder="pyav")
        parts[part] = read_annotations(labels, _annotation(folder, part))[:limit]
        files |= {video.name: source.name(index) for index, video in enumerate(parts[part])}
    conversion = Conversion(to, str(out), height if to != "lists" else None, quality, crf)
    _begin(Path(out), conversion)
    done = _done(Path(out), conversion)
    todo = [(name, file) for name, file in files.items() if name not in done]
    with (
        open(Path(out) / "done.jsonl", "a", encoding="utf-8") as journal,
        tqdm(total=len(files), initial=len(files) - len(todo), unit="video", disable=not progress) as bar,
    ):
        for result in _converted(todo, conversion, workers):
            done[result["id"]] = result
            journal.write(json.dumps(result) + "\n")
            journal.flush()
            bar.update()
    return _finish(Path(out), folder, parts, files, done, conversion)


def _annotation(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.json", folder / f"{_PREFIX}{name}.json"):
        if file.is_file():
            return file
    raise ValueError(
        f"{folder} holds no {name}.json and no {_PREFIX}{name}.json: name the official annotations' folder."
    )


def _begin(out: Path, conversion: Conversion) -> None:
    settings = {name: value for name, value in asdict(conversion).items() if name != "out"}
    file = out / "prepare.json"
    if file.is_file():
        if json.loads(file.read_text()) != settings:
            raise ValueError(f"{out} was begun with other settings ({file}): take those, or another folder.")
        for scratch in (entry for part in ("frames", "videos") for entry in (out / part).glob(".*")):
            shutil.rmtree(scratch) if scratch.is_dir() else scratch.unlink()  # of workers that were killed
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} holds something else: name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(settings, indent=2) + "\n")


def _done(out: Path, conversion: Conversion) -> dict[str, dict[str, Any]]:
    """Videos that an earlier run has finished; broken ones are tried again."""
    done: dict[str, dict[str, Any]] = {}
    try:
        lines = (out / "done.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        try:
            result = json.loads(line)
        except ValueError:  # the line that was being written when the run was stopped
            continue
        if "frames" in result and (conversion.form == "lists" or conversion.target(result["id"]).exists()):
            done[result["id"]] = result
    # Without a broken last line, to which the next one would be joined.
    write_text(out / "done.jsonl", "".join(json.dumps(result) + "\n" for result in done.values()))
    return done


def _converted(todo: list[tuple[str, str]], conversion: Conversion, workers: int) -> Iterator[dict[str, Any]]:
    if not workers:
        yield from (convert(name, file, conversion) for name, file in todo)
        return
    rest = iter(todo)
    with ProcessPoolExecutor(workers, initializer=_quiet) as pool:
        try:
            running = {pool.submit(convert, *video, conversion) for video in itertools.islice(rest, 4 * workers)}
            while running:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(convert, *video, conversion) for video in itertools.islice(rest, len(finished))}
                yield from (future.result() for future in finished)
        except BaseException:  # also a stop by the user: what has not begun, does not begin
            pool.shutdown(cancel_futures=True)
            raise


def _quiet() -> None:
    import signal

    import cv2
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process ends the workers
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _finish(
    out: Path,
    annotations: Path,
    parts: dict[str, list[LabeledVideo]],
    files: dict[str, str],
    done: dict[str, dict[str, Any]],
    conversion: Conversion,
) -> dict[str, Any]:
    write_text(out / "labels.json", _annotation(annotations, "labels").read_text(encoding="utf-8"))
    for part, videos in parts.items():
        ready = [video for video in videos if "frames" in done[video.name]]
        names = {video.name for video in ready}
        entries = json.loads(_annotation(annotations, part).read_text(encoding="utf-8"))
        kept = [entry for entry in entries if entry["id"] in names]
        write_text(out / f"{part}.json", json.dumps(kept, indent=0, ensure_ascii=False) + "\n")
        if conversion.form == "frames":
            rows = [HEADER]
            for number, video in enumerate(ready):
                rows += [
                    f'{video.name} {number} {time} {video.name}/{video.name}_{time + 1:06d}.jpg ""'
                    for time in range(done[video.name]["frames"])
                ]
            (out / "frame_lists").mkdir(exist_ok=True)
            write_text(out / "frame_lists" / f"{PARTS[part]}.csv", "\n".join(rows) + "\n")
        else:
            paths = [
                f"videos/{video.name}.mp4" if conversion.form == "mp4" else os.path.abspath(files[video.name])
                for video in ready
            ]
            rows = [f"{path} {video.label}" for path, video in zip(paths, ready, strict=True)]
            for name in (PARTS[part], *(["test"] if part == "validation" else [])):  # VideoMAE tests on the same videos
                write_text(out / f"{name}.csv", "\n".join(rows) + "\n")
    report = {
        "videos": {part: len(videos) for part, videos in parts.items()},
        "ready": {part: sum("frames" in done[video.name] for video in videos) for part, videos in parts.items()},
        "broken": [
            {"id": video.name, "part": part, "reason": done[video.name]["broken"]}
            for part, videos in parts.items()
            for video in videos
            if "broken" in done[video.name]
        ],
    }
    write_text(out / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(
        prog="python -m frozenllm.video.prepare", description="Makes Something-Something V2 ready for training."
    )
    parser.add_argument("--annotations", required=True, help="folder of labels.json, train.json, validation.json")
    parser.add_argument("--videos", required=True, help="folder of the <id>.webm")
    parser.add_argument("--out", required=True, help="new folder; one that was begun is gone on with")
    parser.add_argument("--to", choices=FORMS, default="frames", help="images, smaller videos, or only lists")
    parser.add_argument("--height", type=int, help="in pixels (VideoMAE: 240); the videos' own if not given")
    parser.add_argument("--quality", type=int, default=95, help="of the JPEG images")
    parser.add_argument("--crf", type=int, default=18, help="of the H.264 videos; lower is better and larger")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; 0: only this one")
    parser.add_argument("--limit", type=int, help="the first videos of each part only, to try it out")
    options = vars(parser.parse_args(argv))
    with errors_in_a_sentence(goes_on=True):
        report = prepare(options.pop("annotations"), options.pop("videos"), options.pop("out"), **options)
    for part, number in report["videos"].items():
        print(f"{part}: {report['ready'][part]} of {number} videos are ready")
    for broken in report["broken"][:10]:
        print(f"left out {broken['id']} ({broken['part']}): {broken['reason']}")
    if len(report["broken"]) > 10:
        print(f"and {len(report['broken']) - 10} more: see report.json")


if __name__ == "__main__":
    main()
