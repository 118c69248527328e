"""Classes of a video, and where its tokens are active.

python -m frozenllm.video.predict clip.mp4 --checkpoint FILE --labels FILE [--out out.mp4]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from frozenllm.core.analysis import ACTIVATIONS
from frozenllm.core.training import errors_in_a_sentence
from frozenllm.video.heatmap import SUFFIXES
from frozenllm.video.predictor import load_predictor


def read_labels(path: str | Path, num_classes: int) -> list[str]:
    """Names of classes.

    Args:
        path: A JSON file (a list, a mapping from name to number as Something-Something V2 has it, or from number to
            name), or a text file with a name a line.
        num_classes: How many there must be.

    Raises:
        ValueError: The file cannot be read, or names another number of classes.
    """
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else [line for line in text.splitlines() if line.strip()]
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no text file.") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not valid JSON ({error}).") from error
    if isinstance(content, dict):
        pairs = [(k, v) if str(v).isdigit() else (v, k) for k, v in content.items()]
        if not all(str(number).isdigit() for _, number in pairs):
            raise ValueError(f"{path}: must map names of classes to their numbers, or the other way round.")
        numbered = {int(number): str(name) for name, number in pairs}
        if sorted(numbered) != list(range(len(content))):
            raise ValueError(f"{path}: the numbers of its classes must be 0 to {len(content) - 1}.")
        content = [numbered[i] for i in range(len(numbered))]
    if not isinstance(content, list) or len(content) != num_classes:
        found = len(content) if isinstance(content, list) else "no list of"
        raise ValueError(f"{path}: has {found} classes, and the checkpoint's model {num_classes}.")
    return [str(name).strip() for name in content]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m frozenllm.video.predict", description="Classes of a video.")
    parser.add_argument("video", help="mp4, webm or whatever FFmpeg decodes")
    parser.add_argument("overrides", nargs="*", help="changes of a run's config, such as llm.path=/models/llama-7b")
    parser.add_argument("--checkpoint", required=True, help="of a run, or its folder; or of the official release")
    parser.add_argument("--labels", help="names: JSON (labels.json of SSv2) or a text file; else numbers")
    parser.add_argument("--views", default="1x1", help="temporal x spatial views; 2x3 is the paper's test [1x1]")
    parser.add_argument("--top", type=int, default=5, help="classes to print [5]")
    parser.add_argument("--out", type=Path, help=f"write the clip with a heat map over it ({', '.join(SUFFIXES)})")
    parser.add_argument("--activation", default="magnitude", choices=list(ACTIVATIONS), help="what the heat map shows")
    parser.add_argument("--decoder", default="auto", choices=["auto", "pyav", "torchcodec"])
    for name, what in (("num-heads", "host's heads"), ("llm-heads", "block's heads"), ("image-size", "pixels")):
        parser.add_argument(f"--{name}", type=int, help=f"of an official checkpoint: {what}")
    parser.add_argument("--num-frames", type=int, help="of an official checkpoint: frames of a clip")
    args = parser.parse_intermixed_args(argv)
    with errors_in_a_sentence():
        temporal, spatial = _views(args.views)
        if args.top < 1:
            raise ValueError(f"--top must be 1 or more, not {args.top}.")
        if args.out is not None and args.out.suffix not in SUFFIXES:
            raise ValueError(f"--out {args.out}: the name must end in {', '.join(SUFFIXES)}.")
        official = {key: getattr(args, key) for key in ("num_heads", "llm_heads", "image_size", "num_frames")}
        predictor = load_predictor(args.checkpoint, overrides=args.overrides, official=official)
        number = predictor.num_classes
        names = read_labels(args.labels, number) if args.labels else [f"class {i}" for i in range(number)]
        found = predictor.probabilities(args.video, temporal, spatial, args.decoder)
        for value, index in zip(*(t.tolist() for t in found.topk(min(args.top, number))), strict=True):
            print(f"{100 * value:6.2f} %  {names[index]}")
        if args.out is not None:
            predictor.draw(args.video, args.out, args.activation, args.decoder)
            print(f"wrote {args.out}")


def _views(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--views must be two numbers such as 2x3, not {text!r}.")
    return int(parts[0]), int(parts[1])


if __name__ == "__main__":
    main()
