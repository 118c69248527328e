"""What a domain's study.py is: which tokens matter, and where they are active."""

from pathlib import Path

import torch
from PIL import Image

from frozenllm.core.analysis import magnitude, tapped
from frozenllm.core.analysis.study import Finding, Frame, Sample, Study, grid_marks
from frozenllm.core.training import DATASETS, read_run


def study(run: str | Path, *, limit: int | None = None, samples: int = 6, weights: str = "auto") -> Study:
    """Six tokens of a point set, drawn as a strip; the first three are the relevant ones."""
    saved = read_run(run, weights)
    model = saved.build()
    data = DATASETS.build(dict(saved.cfg.data.val))
    inputs = torch.stack([data[i][0] for i in range(min(limit or len(data), len(data)))])
    with torch.no_grad():
        if model.llm is None:
            x = model.patch_embed(inputs) + model.pos_embed
            for block in model.blocks:
                x = x + block(x)
            maps = {"magnitude at host": magnitude(x)}
        else:
            with tapped(model) as taps:
                model(inputs)
            maps = {f"magnitude at {tap}": magnitude(taps[tap]) for tap in ("host", "adapter_out")}
    relevant = [True] * 3 + [False] * 3
    findings = [
        Finding("Mean activation", float(values.mean()), name.split(" at ")[1], "magnitude", samples=len(inputs))
        for name, values in maps.items()
    ]
    shown = [
        Sample(
            f"points {i}",
            [Frame(Image.new("RGB", (60, 10), (40 * i, 90, 160)), grid_marks(1, 6))],
            {name: values[i].tolist() for name, values in maps.items()},
            relevant,
        )
        for i in range(min(samples, len(inputs)))
    ]
    return Study(
        "Where the tokens of points are active", "tinydomain", findings, shown, ["Three tokens of six matter."]
    )
