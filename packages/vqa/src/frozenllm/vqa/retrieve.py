"""``python -m frozenllm.vqa.retrieve RUN --split test``: recalls over all pairs.

Scores are computed in chunks and never kept; a killed evaluation goes on where it was when the command is repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from omegaconf import OmegaConf

from frozenllm.core.commands.common import parse_device
from frozenllm.core.training import errors_in_a_sentence, read_run
from frozenllm.vqa.data import GalleryDataset, flickr30k
from frozenllm.vqa.meter.model import MeterRetrieval
from frozenllm.vqa.retrieval import fingerprint_of, model_scorer, stream_recalls
from frozenllm.vqa.runs import ready


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 and one sentence on a user's error."""
    parser = argparse.ArgumentParser(prog="python -m frozenllm.vqa.retrieve", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="the run folder, or one of its checkpoints")
    parser.add_argument("--split", default="test", choices=["val", "test"], help="of the data (%(default)s)")
    parser.add_argument("--root", help="the data's folder; the run's by default")
    parser.add_argument("--limit", type=int, help="at most so many images (default: all)")
    parser.add_argument("--pair-chunk", type=int, default=256, help="pairs that are fused at a time")
    parser.add_argument("--image-block", type=int, default=8, help="images between two notes of the progress")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    with errors_in_a_sentence():
        figures = evaluate(args)
    print(json.dumps(figures, indent=2))


def evaluate(args: argparse.Namespace) -> dict[str, float]:
    """The recalls that the command prints; they are also added to ``retrieval.jsonl`` in the run folder.

    Raises:
        ValueError: The checkpoint, the data or an option does not fit.
    """
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"The limit must be 1 or more, not {args.limit}.")
    device = parse_device(args.device)
    saved = ready(read_run(args.run).expect("retrieval", "meter_retrieval"))
    model, cfg = saved.build(), saved.cfg
    assert isinstance(model, MeterRetrieval)
    settings = OmegaConf.to_container(cfg.data.val, resolve=True)
    assert isinstance(settings, dict)
    settings |= {"part": args.split, "limit": args.limit, **({"root": args.root} if args.root else {})}
    settings.pop("type")
    data = flickr30k(**settings)
    assert isinstance(data, GalleryDataset)
    figures = stream_recalls(
        model_scorer(model.to(device), data, device),
        data.own,
        image_block=args.image_block,
        pair_chunk=args.pair_chunk,
        state=saved.folder / f"retrieval_{args.split}.npz",
        fingerprint=fingerprint_of(saved.path, data),
    )
    with open(saved.folder / "retrieval.jsonl", "a") as file:
        about = {"checkpoint": str(saved.path), "part": args.split, "images": len(data)}
        file.write(json.dumps({**about, **figures}) + "\n")
    return figures


if __name__ == "__main__":
    main()
