"""What the video data pipeline adds to decoding: videos per second of one process, against PyAV alone.

    python benchmarks/video_data.py

Videos of Something-Something V2's usual size (240 x 427 pixels, 45 frames, 12 a second) are made up of smooth noise
that moves, and encoded as VP9 webm (as published), H.264 mp4 and JPEG frames. Every row reads all of them; ratios are
to the time that PyAV takes to decode all frames of a webm and convert them to RGB. Times are of one thread's processor.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from common import write_figures

from frozenllm.core.film import write_film
from frozenllm.video.data import VideoDataset
from frozenllm.video.data.annotations import LabeledVideo
from frozenllm.video.data.dataset import VideoSource
from frozenllm.video.data.decoding import pick_decoder
from frozenllm.video.data.files import VideoFiles
from frozenllm.video.data.frames import FrameFolders

FRAME_RATE = 12  # Something-Something V2's
TRAIN = {"auto_augment": "rand-m7-n4-mstd0.5-inc1", "erase": 0.25}


def make_videos(folder: Path, args: argparse.Namespace) -> dict[str, VideoSource]:
    """The same videos in three forms."""
    rng = np.random.default_rng(0)
    videos, paths = [], []
    for number in range(args.videos):
        coarse = rng.uniform(0, 255, (args.height // 8, args.width // 8 + args.frames, 3)).astype(np.float32)
        wide = cv2.resize(coarse, (args.width + 8 * args.frames, args.height), interpolation=cv2.INTER_CUBIC)
        frames = np.stack([wide[:, 2 * i : 2 * i + args.width] for i in range(args.frames)]).clip(0, 255)
        frames = frames.astype(np.uint8)
        write_film(
            frames, folder / f"{number}.webm", FRAME_RATE, codec="libvpx-vp9", options={"b": "1M", "cpu-used": "8"}
        )
        even = frames[:, : args.height // 2 * 2, : args.width // 2 * 2]
        write_film(even, folder / f"{number}.mp4", FRAME_RATE)
        (folder / str(number)).mkdir()
        names = [f"{number}/{number}_{i + 1:06d}.jpg" for i in range(args.frames)]
        for name, frame in zip(names, frames, strict=True):
            cv2.imwrite(str(folder / name), frame)
        videos.append(LabeledVideo(str(number), 0))
        paths.append(names)

    def files(suffix: str, decoder: str) -> VideoFiles:
        return VideoFiles([LabeledVideo(f"{v.name}{suffix}", 0) for v in videos], str(folder), decoder)

    sources: dict[str, VideoSource] = {
        "webm": files(".webm", "pyav"),
        "mp4": files(".mp4", "pyav"),
        "frames": FrameFolders(paths, videos, str(folder)),
    }
    try:
        pick_decoder("torchcodec")
        sources |= {f"{name}, torchcodec": files(f".{name}", "torchcodec") for name in ("webm", "mp4")}
    except ImportError:
        print("torchcodec does not work here: left out")
    return sources


def pyav_alone(path: str) -> None:
    """All frames of a video as RGB arrays, in one thread."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for frame in container.decode(video=0):
            frame.to_ndarray(format="rgb24")


def seconds(read: Callable[[int], object], number: int, turns: int) -> float:
    """Best mean processor time of one video, over all of them, after one that warms up."""
    read(0)
    times = []
    for repetition in range(turns):
        torch.manual_seed(repetition)
        np.random.seed(repetition)
        start = time.process_time()
        for index in range(number):
            read(index)
        times.append((time.process_time() - start) / number)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=45)
    parser.add_argument("--height", type=int, default=240)
    parser.add_argument("--width", type=int, default=427)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a loader's worker has one
    cv2.setNumThreads(1)
    sampling = {"type": "segments", "num_frames": 16}
    with tempfile.TemporaryDirectory() as folder:
        sources = make_videos(Path(folder), args)

        def rows() -> dict[str, Callable[[int], object]]:
            tasks: dict[str, Callable[[int], object]] = {}
            for form in ("webm", "mp4"):
                tasks[f"PyAV alone, all frames of a {form}"] = lambda i, form=form: pyav_alone(sources[form].name(i))
            for form, source in sources.items():
                plain = VideoDataset(source, sampling=sampling, transform={"size": args.size})
                train = VideoDataset(source, sampling=sampling, transform={"size": args.size, **TRAIN}, train=True)
                twice = VideoDataset(
                    source,
                    sampling=sampling,
                    transform={"size": args.size, **TRAIN},
                    train=True,
                    samples_per_video=2,
                )
                views = VideoDataset(
                    source, sampling=sampling, transform={"size": args.size}, views={"temporal": 2, "spatial": 3}
                )
                tasks[f"{form}: 16 frames"] = lambda i, s=source, d=plain: s.frames(i, d.sampling.random)
                tasks[f"{form}: validation clip"] = plain.__getitem__
                tasks[f"{form}: training clip"] = train.__getitem__
                tasks[f"{form}: two training clips"] = twice.__getitem__
                tasks[f"{form}: six test views"] = lambda i, d=views: [d[6 * i + view] for view in range(6)]
            return tasks

        figures = []
        print(f"torch {torch.__version__}, PyAV {av.__version__}, one thread; {args.videos} videos")
        print(f"of {args.frames} frames, {args.height} x {args.width} pixels, clips of {args.size}")
        for name, read in rows().items():
            time_each = seconds(read, args.videos, args.turns)
            figures.append(
                {"row": name, "seconds": time_each, "ratio": time_each / (figures or [{}])[0].get("seconds", time_each)}
            )
            print(f"{name:36}  {1 / time_each:6.1f} videos/s  {figures[-1]['ratio']:5.2f} x", flush=True)
    write_figures(args.json, figures)


if __name__ == "__main__":
    main()
