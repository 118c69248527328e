"""``python -m frozenllm.vqa.ask image.jpg "question?" --checkpoint RUN``: the best answers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from frozenllm.core.training import errors_in_a_sentence
from frozenllm.vqa.answerer import TAPS, Answerer, print_answers


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 and one sentence on a user's error."""
    parser = argparse.ArgumentParser(
        prog="python -m frozenllm.vqa.ask", description="Ask a trained run about an image."
    )
    parser.add_argument("image", help="the image's file")
    parser.add_argument("question")
    parser.add_argument("--checkpoint", required=True, help="of a run of question answering, or its folder")
    parser.add_argument("--top", type=int, default=5, help="how many answers (%(default)s)")
    parser.add_argument("--out", metavar="FILE", help="also save the image with the activity of its tokens")
    parser.add_argument("--tap", default=TAPS[0], choices=TAPS, help="tokens that leave or enter the layer")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    with errors_in_a_sentence():
        answerer = Answerer(args.checkpoint, args.device)
        print_answers(answerer.ask(args.image, args.question, args.top))
        if args.out:
            try:
                answerer.picture(args.image, args.question, args.tap).save(args.out)
            except (OSError, ValueError) as error:
                raise ValueError(f"The picture {args.out} cannot be written ({error}).") from error
            print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
