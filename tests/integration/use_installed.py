"""What someone does with installed packages, from Python: run by the tests of the wheels in their environments.

``python use_installed.py list vision2d`` prints the recipes, ``python use_installed.py predict vision2d RUN`` puts two
samples of the run's validation data through its model.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.resources import files


def recipes(domain: str) -> list[str]:
    """The recipes that a domain's tool offers."""
    names = [file.name for file in files(f"frozenllm.{domain}.conf").joinpath("recipe").iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and not name.startswith("_"))


def predict(domain: str, run: str) -> list[tuple[int, ...]]:
    """Shapes of what the trained model of a run gives for two samples of its validation data."""
    import torch
    from omegaconf import OmegaConf
    from torch.utils.data import default_collate

    from frozenllm.core.training import DATASETS, FUNCTIONS, read_run

    import_module(f"frozenllm.{domain}.train")
    saved = read_run(run)
    model = saved.build()
    data = DATASETS.build(OmegaConf.to_container(saved.cfg.data.val, resolve=True))
    collate = FUNCTIONS.get(saved.cfg.data.collate) if saved.cfg.data.collate else default_collate
    batch = collate([data[0], data[1]])
    inputs = batch["inputs"] if isinstance(batch, dict) else batch[0]
    with torch.no_grad():
        outputs = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    tensors = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    assert all(torch.isfinite(tensor).all() for tensor in tensors)
    return [tuple(tensor.shape) for tensor in tensors]


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    print({"list": recipes, "predict": predict}[what](*arguments))
