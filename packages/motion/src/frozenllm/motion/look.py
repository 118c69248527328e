"""Pictures and films of what a trained model predicts: ``python -m frozenllm.motion.look RUN``.

Writes ``<number>_<scenario>.png`` and ``.mp4``: map, observed tracks, predicted modes with their probabilities, what
happened, and how active every polyline's token is behind the frozen layer.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from frozenllm.core.training import errors_in_a_sentence
from frozenllm.motion.pictures import ACTIVATIONS, ScenePicture, activations
from frozenllm.motion.trained import Trained, as_batch, load_trained


def look(
    trained: Trained,
    folder: Path,
    *,
    split: str = "val",
    count: int = 4,
    kind: str = "magnitude",
    film: bool = True,
    scenario: str | None = None,
) -> list[Path]:
    """Write pictures of a split's first scenarios.

    Args:
        trained: See `frozenllm.motion.trained.load_trained`.
        folder: Made if missing.
        split: Of the run's data.
        count: Scenarios.
        kind: One of `ACTIVATIONS`.
        film: Write films too.
        scenario: The id of the one scenario to write; None for the first ones.

    Returns:
        The files.

    Raises:
        ValueError: There is no such split or scenario, the model has no such activation, or the count is not positive.
    """
    data: Any = trained.dataset(split)
    if scenario is not None:
        found = [index for index, name in enumerate(data.names) if str(name) == scenario]
        if not found:
            raise ValueError(f"The split {split} has no scenario {scenario}.")
        indices = found[:1]
    else:
        if count < 1:
            raise ValueError(f"The count of scenarios must be 1 or more, not {count}.")
        indices = list(range(min(count, len(data))))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in tqdm(indices, desc="drawing", unit="scenario"):
        sample = data[index]
        batch = as_batch(sample["inputs"], trained.device)
        with torch.no_grad():
            outputs = trained.task.model(**batch)
        targets = {name: value[None] for name, value in sample["targets"].items()}
        (prediction,) = trained.task.predict(outputs, targets)
        active = activations(trained.task.model, batch, kind)[0]
        layer = "no frozen layer" if trained.task.model.llm is None else trained.cfg.llm.name
        picture = ScenePicture(
            sample["inputs"], prediction, active, title=f"{sample['scenario']}  ({layer})", label=f"{kind} of the token"
        )
        path = folder / f"{index:05d}_{sample['scenario']}.png"
        picture.save(path)
        files.append(path)
        if film:
            picture.save_film(path.with_suffix(".mp4"))
            files.append(path.with_suffix(".mp4"))
    return files


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m frozenllm.motion.look", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="the run folder, or one of its checkpoints")
    parser.add_argument("overrides", nargs="*", help="changes of the run's config, such as data.root=/data/argoverse2")
    parser.add_argument("--split", default="val")
    parser.add_argument("--count", type=int, default=4, help="scenarios (%(default)s)")
    parser.add_argument("--scenario", help="the id of one scenario")
    parser.add_argument("--activation", default="magnitude", choices=ACTIVATIONS, help="of the polylines' tokens")
    parser.add_argument("--no-film", action="store_true", help="pictures only")
    parser.add_argument("--out", type=Path, help="folder to write (<run>/looks)")
    options = parser.parse_intermixed_args(argv)
    with errors_in_a_sentence():
        trained = load_trained(options.run, options.overrides)
        folder = options.out or trained.folder / "looks"
        files = look(
            trained,
            folder,
            split=options.split,
            count=options.count,
            kind=options.activation,
            film=not options.no_film,
            scenario=options.scenario,
        )
    print(f"wrote {len(files)} files to {folder}")


if __name__ == "__main__":
    main()
