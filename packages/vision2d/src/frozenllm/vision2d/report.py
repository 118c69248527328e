"""The demo's figures and its page: everything said there is computed from the summary."""

from __future__ import annotations

import base64
import html
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import timm
import torch
from matplotlib.figure import Figure
from PIL import Image

from frozenllm.core.style import COLOURS, HOST_COLOUR, new_figure, styled
from frozenllm.vision2d.toy import write_digits

_COLOURS = (HOST_COLOUR, *COLOURS[:2])
_TEMPLATE = Path(__file__).with_name("report_template.html")


def write_report(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Write the figures as PNG, and a page that holds them all and needs no network.

    Args:
        folder: The demo's folder.
        summary: See `frozenllm.vision2d.demo.run_demo`.

    Returns:
        The page.
    """
    with styled():
        figures = {"accuracy.png": _accuracy(summary), "curves.png": _curves(summary), "loss.png": _loss(summary)}
        if summary["layers"]:
            figures["layers.png"] = _layers(summary)
        for name, figure in figures.items():
            figure.savefig(folder / name, dpi=160)
    page = Template(_TEMPLATE.read_text()).substitute(
        headline=_escape(headline(summary)),
        findings="".join(f"<li>{_escape(text)}</li>" for text in findings(summary)),
        limits="".join(f"<li>{_escape(text)}</li>" for text in limits(summary)),
        rows=_rows(summary),
        samples=_embed(_samples(folder)),
        accuracy=_embed(folder / "accuracy.png"),
        curves=_embed(folder / "curves.png"),
        loss=_embed(folder / "loss.png"),
        layers=_layers_section(folder, summary),
        settings=html.escape(_settings(summary)),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


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


def _rows(summary: Mapping[str, Any]) -> str:
    rows = []
    for arm, colour in zip(summary["arms"], _COLOURS, strict=True):
        cells = (
            _escape(_value(arm)),
            f"{arm['trainable']:,}",
            f"{arm['frozen']:,}",
            f"{1000 * arm['step_seconds']:.1f} ms",
            f"{arm['relative_step']:.2f} \N{MULTIPLICATION SIGN}",
        )
        name = f'<th scope="row"><i style="background:{colour}"></i>{html.escape(arm["arm"])}</th>'
        rows.append(f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return "\n".join(rows)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure = new_figure(width, height)
    return figure, figure.subplots()


def _accuracy(summary: Mapping[str, Any]) -> Figure:
    figure, axes = _axes(6.4, 2.7)
    for row, (arm, colour) in enumerate(zip(summary["arms"], _COLOURS, strict=True)):
        axes.plot([arm["mean"]] * 2, [row - 0.28, row + 0.28], color=colour, lw=3, solid_capstyle="round")
        axes.plot(arm["values"], [row] * len(arm["values"]), "o", color=colour, ms=8, alpha=0.65, mec="white")
    axes.set_yticks(range(len(summary["arms"])), [arm["arm"] for arm in summary["arms"]])
    axes.set_ylim(len(summary["arms"]) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("validation accuracy, %   (dots: seeds, bars: means)")
    return figure


def _lines(summary: Mapping[str, Any], key: str, label: str) -> Figure:
    figure, axes = _axes(6.4, 3.4)
    for arm, colour in zip(summary["arms"], _COLOURS, strict=True):
        epochs = arm["curves"][0]["epoch"]
        per_epoch = list(zip(*(curve[key] for curve in arm["curves"]), strict=True))
        means, lowest, highest = ([of(v) for v in per_epoch] for of in (statistics.mean, min, max))
        axes.plot(epochs, means, color=colour, lw=2, marker="o", ms=3, label=arm["arm"])
        axes.fill_between(epochs, lowest, highest, color=colour, alpha=0.15, lw=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    return figure


def _curves(summary: Mapping[str, Any]) -> Figure:
    return _lines(summary, "accuracy", "validation accuracy, %")


def _loss(summary: Mapping[str, Any]) -> Figure:
    return _lines(summary, "loss", "training loss, nats")


def _layers(summary: Mapping[str, Any]) -> Figure:
    figure, axes = _axes(6.4, 3.2)
    layers = summary["layers"]
    host = summary["arms"][0]
    numbers = [entry["layer"] for entry in layers]
    for entry in layers:
        values = entry["values"]
        axes.plot([entry["layer"]] * len(values), values, "o", color=_COLOURS[1], ms=6, alpha=0.45, mec="white")
    axes.plot(numbers, [entry["mean"] for entry in layers], color=_COLOURS[1], lw=2, label="+ frozen block, by layer")
    axes.axhline(host["mean"], color=_COLOURS[0], lw=2, ls="--", label=host["arm"])
    rival = summary["arms"][2]
    axes.axhline(rival["mean"], color=_COLOURS[2], lw=2, ls=":", label=rival["arm"])
    axes.set_xticks(numbers)
    axes.set_xlabel("layer of the bundled language model (0: next to its input)")
    axes.set_ylabel("validation accuracy, %")
    axes.margins(y=0.12)
    axes.legend(fontsize=9)
    return figure


def _layers_section(folder: Path, summary: Mapping[str, Any]) -> str:
    layers = summary["layers"]
    if not layers:
        return ""
    best, worst = max(layers, key=lambda e: e["mean"]), min(layers, key=lambda e: e["mean"])
    host = summary["arms"][0]
    above = sum(entry["mean"] > host["mean"] for entry in layers)
    within = max(max(entry["values"]) - min(entry["values"]) for entry in layers)
    text = (
        f"Layer {best['layer']} does best ({_value(best)}), layer {worst['layer']} worst ({_value(worst)}); "
        f"{above} of {len(layers)} layers are above the host alone on average. "
        f"The means lie within {best['mean'] - worst['mean']:.1f} points, runs of one layer up to {within:.1f} apart. "
        f"Dots: single runs, seeds {', '.join(map(str, summary['layer_seeds']))}."
    )
    return (
        "<figure><h3>Which layer of the language model</h3>"
        f'<img alt="Accuracy by layer" src="{_embed(folder / "layers.png")}">'
        f"<figcaption>{_escape(text)}</figcaption></figure>"
    )


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


def _samples(folder: Path, per_class: int = 2) -> Path:
    """A strip of training images, as the loader finds them."""
    paths: list[Path] = []
    root = write_digits() / "train"
    for label in range(10):
        paths += sorted((root / str(label)).glob("*.png"))[:per_class]
    tiles: Sequence[Image.Image] = [Image.open(path) for path in paths]
    size = tiles[0].width
    strip = Image.new("L", (len(tiles) * (size + 4) - 4, size), 255)
    for place, tile in enumerate(tiles):
        strip.paste(tile, (place * (size + 4), 0))
    path = folder / "samples.png"
    strip.save(path)
    return path


def _escape(text: str) -> str:
    return html.escape(text).replace("+-", "&plusmn;")


def _embed(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
