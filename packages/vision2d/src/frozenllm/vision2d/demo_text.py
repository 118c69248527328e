"""What the demo says about its runs: every sentence is computed from its summary."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from PIL import Image

from frozenllm.core.report import Lead
from frozenllm.vision2d.toy import write_digits

_INTRODUCTION = (
    "A small vision transformer learns to read handwritten digits three times over: alone, with one frozen block of a "
    "small language model between its last block and its head, and with a frozen block of the same shape whose weights "
    "are random. The data, the training budget and, seed by seed, the host's first weights are the same."
)
_DATA = (
    "Two training images of every digit. They come with scikit-learn (UCI, optical recognition of handwritten digits), "
    "are enlarged from 8 x 8 pixels and read back from an image folder by the loader that reads ImageNet."
)


def lead(summary: Mapping[str, Any]) -> Lead:
    """What stands in the report beside the figures.

    Args:
        summary: See `frozenllm.vision2d.demo.run_demo`.
    """
    lists = {
        "What the figures show": findings(summary),
        "What they do not show": limits(summary),
        "How it was done": [_settings(summary)],
    }
    return Lead(headline(summary), _INTRODUCTION, lists, {_DATA: samples()})


def headline(summary: Mapping[str, Any]) -> str:
    """The three figures, and what they say about the language model."""
    host, bundled, rival = summary["arms"]
    text = (
        f"Alone, the host reads {_value(host)} of the held-out digits; with the frozen bundled block "
        f"{_value(bundled)}; with a frozen random block of the same shape {_value(rival)}."
    )
    if bundled["mean"] <= max(host["mean"], rival["mean"]):
        return f"{text} Nothing here says that it is the language model's training that helps."
    if min(bundled["values"]) > max(*host["values"], *rival["values"]):
        return f"{text} In this small setting, the language model's weights do best in every run."
    return f"{text} The language model's weights do best on average, but not in every run."


def findings(summary: Mapping[str, Any]) -> list[str]:
    """What the figures show, one sentence or two each."""
    host, bundled, rival = summary["arms"]
    texts = [_against(bundled, host, "the host with the frozen bundled block", "the host alone")]
    texts.append(_against(rival, host, "the host with a frozen random block", "the host alone"))
    texts.append(_against(bundled, rival, "the bundled block", "the random block of the same shape"))
    extra = bundled["trainable"] - host["trainable"]
    texts.append(
        f"The frozen block's {bundled['frozen']:,} weights did not change by a bit (every run checks). The two "
        f"adapters add {extra:,} trainable weights to the host's {host['trainable']:,}, and a training step takes "
        f"{bundled['relative_step']:.2f} times the host's."
    )
    return texts


def limits(summary: Mapping[str, Any]) -> list[str]:
    """What the figures do not show."""
    count = len(summary["seeds"])
    samples = summary["samples"]
    host, bundled, _ = summary["arms"]
    share = 100 * (bundled["trainable"] - host["trainable"]) / host["trainable"]
    return [
        "They neither confirm nor contradict the paper: it inserts a block of a language model with seven billion "
        "weights into ImageNet classifiers, trained for 300 epochs.",
        f"The data is tiny: {samples['train']:,} training and {samples['val']:,} validation images of 8 x 8 pixels; "
        f"one validation image is {100 / samples['val']:.2f} points.",
        f"{'One seed gives' if count == 1 else f'{count} seeds give'} a rough idea of chance, not a test of "
        "significance.",
        f"Training is short ({summary['epochs']} epochs) and the host starts from nothing, so the figures tell who "
        "learns faster as much as who ends higher. Another learning rate or initialisation can change the order.",
        f"The adapters alone are {share:.0f} % more trainable weights; the control without a block in between "
        "(llm=mlp) is not among the arms.",
        "The recipe was chosen by hand with an eye on these validation images; there is no separate test set.",
    ]


def _against(arm: Mapping[str, Any], base: Mapping[str, Any], name: str, base_name: str) -> str:
    gap = arm["mean"] - base["mean"]
    text = f"{name[0].upper()}{name[1:]} reaches {_value(arm)}, {base_name} {_value(base)}: "
    if abs(gap) < 0.005:
        return text + "no difference on average."
    text += f"{abs(gap):.1f} points {'more' if gap > 0 else 'less'} on average"
    if len(arm["values"]) == 1:
        return text + ", in one run each."
    above, below = (arm, base) if gap > 0 else (base, arm)
    if min(above["values"]) > max(below["values"]):
        return text + ", and every run of the better arm is above every run of the other."
    return text + ", but the runs of the two arms overlap."


def _value(arm: Mapping[str, Any]) -> str:
    spread = f" +- {arm['spread']:.1f}" if len(arm["values"]) > 1 else ""
    return f"{arm['mean']:.1f}{spread} %"


def _settings(summary: Mapping[str, Any]) -> str:
    host = summary["host"]
    return (
        f"Host: {host['img_size']} px in patches of {host['patch_size']}, {host['embed_dim']} wide, {host['depth']} "
        f"blocks, {host['num_heads']} heads, class token. {summary['epochs']} epochs, batch {summary['batch_size']}, "
        f"AdamW at {summary['learning_rate']:g}; seeds {', '.join(map(str, summary['seeds']))}. Accuracy is that of "
        f"the last epoch. Step: forward, backward and update of one batch on one thread, median; arms take turns. "
        f"{summary['seconds']:.0f} s in all, on {platform.machine()} with Python {platform.python_version()}, torch "
        f"{torch.__version__}, timm {timm.__version__}."
    )


def samples(per_class: int = 2) -> Image.Image:
    """A strip of training images, as the loader finds them."""
    root = write_digits() / "train"
    paths = [path for label in range(10) for path in sorted((root / str(label)).glob("*.png"))[:per_class]]
    tiles: Sequence[Image.Image] = [Image.open(path) for path in paths]
    size = tiles[0].width
    strip = Image.new("L", (len(tiles) * (size + 4) - 4, size), 255)
    for place, tile in enumerate(tiles):
        strip.paste(tile, (place * (size + 4), 0))
    return strip
