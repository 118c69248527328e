"""``python -m frozenllm.vqa.app RUN``: a page to ask a trained run about images.

Needs the extra ``[app]``. Nothing leaves the machine: the page loads no fonts and reports no usage.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from frozenllm.core.training import errors_in_a_sentence
from frozenllm.vqa.answerer import TAPS, Answerer

_CHOICES = {"tokens that leave the frozen layer": TAPS[0], "tokens that enter it": TAPS[1]}


def build_page(answerer: Answerer) -> Any:
    """The page, as a `gradio.Blocks`.

    Args:
        answerer: The run to ask.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The page needs gradio, which is not installed: pip install 'frozenllm-vqa[app]'.", name="gradio"
        ) from error

    def answer(image: Image.Image | None, question: str, where: str) -> tuple[dict[str, float], Image.Image]:
        if image is None:
            raise gr.Error("Choose an image first.")
        try:
            answers = answerer.ask(image, question)
            picture = answerer.picture(image, question, _CHOICES[where])
        except ValueError as error:
            raise gr.Error(str(error)) from error
        return {found.text: found.probability for found in answers}, picture

    with gr.Blocks(title="Ask about an image", analytics_enabled=False) as page:
        gr.Markdown("# Ask about an image\nMETER with a frozen language-model block.")
        with gr.Row():
            with gr.Column():
                image = gr.Image(type="pil", label="Image", sources=["upload", "clipboard"], height=320)
                question = gr.Textbox(label="Question", placeholder="What color is the circle?")
                where = gr.Radio(list(_CHOICES), value=next(iter(_CHOICES)), label="Activity of the")
                ask = gr.Button("Ask", variant="primary")
            with gr.Column():
                answers = gr.Label(num_top_classes=5, label="Answers, each with the probability that it is right")
                picture = gr.Image(label="Activity of the visual tokens", interactive=False)
        for event in (ask.click, question.submit):
            event(answer, [image, question, where], [answers, picture])
    return page


def serve(answerer: Answerer, *, host: str = "127.0.0.1", port: int | None = 7860, block: bool = True) -> Any:
    """Serve the page.

    Args:
        answerer: The run to ask.
        host: Address to serve on.
        port: Port; None for a free one.
        block: Serve until interrupted; else return at once.

    Returns:
        The page, with its address as ``local_url``, and ``close()``.

    Raises:
        ModuleNotFoundError: Gradio is not installed.
        OSError: The port is taken.
    """
    page = build_page(answerer)
    import gradio as gr

    theme = gr.themes.Base(font=["sans-serif"], font_mono=["monospace"])  # the default theme's fonts are on the web
    page.launch(server_name=host, server_port=port, theme=theme, share=False, prevent_thread_lock=not block)
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; exits with status 1 and one sentence on a user's error."""
    parser = argparse.ArgumentParser(prog="python -m frozenllm.vqa.app", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="the run folder, or one of its checkpoints")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve on")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args(argv)
    with errors_in_a_sentence():
        answerer = Answerer(args.run, args.device)
        try:
            serve(answerer, host=args.host, port=args.port)
        except (OSError, OverflowError) as error:
            raise ValueError(f"The page cannot be served on {args.host}:{args.port} ({error}).") from error


if __name__ == "__main__":
    main()
