"""Cost of the frozen layer in METER, relative to the host alone: one training step, and scoring a gallery.

    python benchmarks/vqa.py --json runs/bench/vqa.json      # minutes on two cores
    python benchmarks/vqa.py --tiny                          # seconds: does it run?

The host has METER's sizes (CLIP ViT-B/32, RoBERTa-base, six co-attention layers), the block LLaMA-7B's; weights are
random: speed does not depend on them. Host and host with the layer take turns, and a figure is their ratio within one
turn. For the gallery, encoding every image and caption once is compared with encoding them anew for every pair, as
METER's code does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import LLAMA_7B, TINY_BLOCK, ratio, take_turns, write_figures
from torch import Tensor

from frozenllm.vqa.meter import MeterRetrieval, build_trunk, build_vqa

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
SMALL = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
ANSWERS = 3129
HOST, LAYER = "host", "host + frozen layer"


def sizes(tiny: bool) -> dict[str, Any]:
    """Arguments of the builders."""
    if tiny:
        return {
            "image_encoder": {**SMALL, "image_size": 32, "patch_size": 16},
            "text_encoder": {**SMALL, "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 1},
            "width": 24,
            "heads": 2,
            "layers": 1,
        }
    return {"image_encoder": {"patch_size": 32}, "text_encoder": ROBERTA}


def inputs(batch: int, length: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, token ids and mask; the last third of every text is padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (batch, length), generator=generator)
    mask = (torch.arange(length) < length - length // 3).expand(batch, -1)
    return torch.randn(batch, 3, side, side, generator=generator), ids, mask


def timed(call: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, after one that does not count."""
    return statistics.median(take_turns({"call": call}, times)["call"])


def training(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a training step of question answering, without and with the layer."""
    pixels, ids, mask = inputs(args.batch, args.length, 32 if args.tiny else 224)
    seconds: dict[str, list[float]] = {HOST: [], LAYER: []}
    block = {"kind": "random", "spec": TINY_BLOCK if args.tiny else LLAMA_7B}
    models = {
        arm: build_vqa(answers=ANSWERS, llm=llm, **sizes(args.tiny)) for arm, llm in ((HOST, None), (LAYER, block))
    }

    def step(model: torch.nn.Module) -> None:
        logits = model(pixels, ids, mask)
        F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
        model.zero_grad()

    for _ in range(args.turns):
        for arm, model in models.items():
            seconds[arm].append(timed(lambda model=model: step(model), args.steps))
    return {"what": "training step", "seconds": seconds, "relative": ratio(seconds[LAYER], seconds[HOST])}


@torch.inference_mode()
def gallery(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds to score all pairs of a small gallery: encoded once, and encoded for every pair."""
    pixels, ids, mask = inputs(args.gallery, args.length, 32 if args.tiny else 224)
    model = MeterRetrieval(build_trunk(**sizes(args.tiny)), pair_chunk=args.gallery).eval()

    def every_pair_anew() -> None:
        for image in pixels:
            model(image.expand(args.gallery, -1, -1, -1), ids[:, None], mask[:, None])

    once = timed(lambda: model(pixels, gallery_ids=ids, gallery_mask=mask), args.steps)
    anew = timed(every_pair_anew, args.steps)
    return {"what": f"gallery of {args.gallery} x {args.gallery}", "once": once, "anew": anew, "relative": once / anew}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=18, help="tokens of a text")
    parser.add_argument("--gallery", type=int, default=16, help="images, and captions")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: only to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if args.tiny:
        args.batch, args.gallery, args.steps, args.turns = 2, 4, 1, 1
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {args.batch}", flush=True)
    rows = [training(args), gallery(args)]
    medians = {arm: statistics.median(times) for arm, times in rows[0]["seconds"].items()}
    for arm, seconds in medians.items():
        print(f"training step, {arm:20s} {seconds:8.3f} s")
    print(f"  relative to the host: {rows[0]['relative']:.2f}")
    print(f"{rows[1]['what']}: {rows[1]['once']:.3f} s encoded once, {rows[1]['anew']:.3f} s encoded for every pair")
    print(f"  relative: {rows[1]['relative']:.2f}")
    write_figures(args.json, rows)


if __name__ == "__main__":
    main()
