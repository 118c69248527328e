"""Figure of the study of question answering: images with the activations of their patches."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image

from frozenllm.core.analysis.study import Sample

_ROWS = ("magnitude at host", "magnitude at adapter_out", "attention at attention_weights")


def figure(samples: Sequence[Sample], side: int) -> Image.Image:
    """Images in a row, and below them how active their patches are; the patches that matter are framed.

    Args:
        samples: With one picture each.
        side: Patches along one side of an image.
    """
    from frozenllm.core.style import as_image, new_figure

    names = [name for name in _ROWS if name in samples[0].activations]
    drawn = new_figure(2.1 * len(samples) + 0.3, 2.0 * (len(names) + 1) + 0.7)
    axes = drawn.subplots(len(names) + 1, len(samples), squeeze=False)
    for column, sample in enumerate(samples):
        picture = sample.frames[0].picture
        extent = (0, side, side, 0)
        axes[0, column].imshow(picture, extent=extent)
        axes[0, column].set_title("\n".join(textwrap.wrap(sample.title, 30)), fontsize=7)
        for row, name in enumerate(names, start=1):
            values = np.array(sample.activations[name]).reshape(side, side)
            axes[row, column].imshow(values, extent=extent, cmap="viridis", vmin=0, vmax=1)
            axes[row, column].set_title(name, fontsize=7)
        for each in axes[:, column]:
            each.set_axis_off()
            for token in np.flatnonzero(sample.relevant or []):
                y, x = divmod(int(token), side)
                each.plot([x, x + 1, x + 1, x, x], [y, y, y + 1, y + 1, y], color="#b91c1c", lw=1.5, clip_on=False)
    return as_image(drawn, dpi=110)
