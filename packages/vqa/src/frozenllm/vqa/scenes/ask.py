"""``python -m frozenllm.vqa.scenes.ask RUN --scene ID --situation "..." --question "..."``: the best answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from frozenllm.core.training import errors_in_a_sentence
from frozenllm.vqa.answerer import print_answers
from frozenllm.vqa.scenes.answerer import SceneAnswerer


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 and one sentence on a user's error."""
    parser = argparse.ArgumentParser(
        prog="python -m frozenllm.vqa.scenes.ask", description="Ask a trained run about a scan."
    )
    parser.add_argument("run", help="the run folder, or one of its checkpoints")
    parser.add_argument("--scene", required=True, metavar="ID", help="a prepared scene, such as scene0380_00")
    parser.add_argument("--situation", required=True, help="where you stand, and what you see")
    parser.add_argument("--question", required=True)
    parser.add_argument("--scenes", metavar="FOLDER", help="with prepared scenes; by default that of the run's data")
    parser.add_argument("--top", type=int, default=5, help="how many answers (%(default)s)")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    with errors_in_a_sentence():
        answerer = SceneAnswerer(args.run, args.scenes, args.device)
        print_answers(answerer.ask(args.scene, args.situation, args.question, args.top))


if __name__ == "__main__":
    main()
