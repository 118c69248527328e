"""``python -m frozenllm.vqa.retrieve --checkpoint RUN/checkpoints/last.pt --part test``: recalls over all pairs.

Scores are computed in chunks and never kept; a killed evaluation goes on where it was when the command is repeated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf

from frozenllm.vqa.data import GalleryDataset, flickr30k
from frozenllm.vqa.meter.model import MeterRetrieval
from frozenllm.vqa.retrieval import fingerprint_of, model_scorer, stream_recalls
from frozenllm.vqa.runs import load_run


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 and one sentence on a user's error."""
    parser = argparse.ArgumentParser(prog="python -m frozenllm.vqa.retrieve", description=__doc__.split("\n\n")[0])
    parser.add_argument("--checkpoint", required=True, help="of a retrieval run, in its run folder")
    parser.add_argument("--part", default="test", choices=["val", "test"])
    parser.add_argument("--root", help="the data's folder; the run's by default")
    parser.add_argument("--limit", type=int, help="only so many images")
    parser.add_argument("--pair-chunk", type=int, default=256, help="pairs that are fused at a time")
    parser.add_argument("--image-block", type=int, default=8, help="images between two notes of the progress")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    try:
        figures = evaluate(args)
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(json.dumps(figures, indent=2))


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """The recalls that the command prints; they are also added to ``retrieval.jsonl`` in the run folder.

    Raises:
        ValueError: The checkpoint, the data or an option does not fit.
    """
    model, cfg = load_run(args.checkpoint)
    if not isinstance(model, MeterRetrieval):
        raise ValueError(f"{args.checkpoint} is not a retrieval run.")
    settings = OmegaConf.to_container(cfg.data.val, resolve=True)
    assert isinstance(settings, dict)
    settings |= {"part": args.part, "limit": args.limit, **({"root": args.root} if args.root else {})}
    settings.pop("type")
    data = flickr30k(**settings)
    assert isinstance(data, GalleryDataset)
    device = torch.device(args.device)
    folder = Path(args.checkpoint).expanduser().parent.parent
    figures = stream_recalls(
        model_scorer(model.to(device), data, device),
        data.own,
        image_block=args.image_block,
        pair_chunk=args.pair_chunk,
        state=folder / f"retrieval_{args.part}.npz",
        fingerprint=fingerprint_of(args.checkpoint, data),
    )
    with open(folder / "retrieval.jsonl", "a") as file:
        about = {"checkpoint": str(args.checkpoint), "part": args.part, "images": len(data)}
        file.write(json.dumps({**about, **figures}) + "\n")
    return figures


if __name__ == "__main__":
    main()
