"""The file that a benchmark takes, from a trained model: ``python -m frozenllm.motion.submit RUN data.root=...``.

Argoverse 2: ``submission.parquet`` for the split ``test``; Argoverse 1: ``submission.h5`` for ``test_obs``. Scenarios
with a known future (``--split val``) are scored too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from frozenllm.core.training import METRICS, errors_in_a_sentence
from frozenllm.motion.submission import write_argoverse1, write_argoverse2
from frozenllm.motion.trained import Trained, load_trained

TEST_SPLITS = {"argoverse1": "test_obs", "argoverse2": "test"}
WRITERS = {"argoverse1": (write_argoverse1, "submission.h5"), "argoverse2": (write_argoverse2, "submission.parquet")}


def submit(
    trained: Trained, *, split: str | None = None, out: Path | None = None, progress: bool = True
) -> tuple[Path, dict[str, float]]:
    """Predict a split and write the file.

    Args:
        trained: See `frozenllm.motion.trained.load_trained`.
        split: Of the run's data; None for the benchmark's test split.
        out: The file; None for ``<run>/submission.parquet`` or ``.h5``, of other splits ``submission_<split>``.
        progress: Show a bar.

    Returns:
        The file, and the run's metrics where the split has futures, else nothing.

    Raises:
        ValueError: A scenario cannot be read, or the model predicts what the benchmark does not take.
    """
    benchmark = str(trained.cfg.data.val.type).removeprefix("toy_")
    if benchmark not in WRITERS:
        raise ValueError(f"No benchmark takes predictions for {trained.cfg.data.val.type}: only {', '.join(WRITERS)}.")
    write, name = WRITERS[benchmark]
    metrics = [METRICS.build(dict(settings)) for settings in trained.cfg.metrics]
    known = 0

    def scored() -> Iterator[dict[str, Any]]:
        nonlocal known
        for sample in trained.predict(split or TEST_SPLITS[benchmark], progress):
            if sample["valid"].any():
                known += 1
                for metric in metrics:
                    metric.process(None, [sample])
            yield sample

    if split not in (None, TEST_SPLITS[benchmark]):  # not in the place of the file for the benchmark
        name = name.replace("submission", f"submission_{split}")
    if out is not None and out.is_dir():
        raise ValueError(f"{out} is a folder: name a file in it.")
    path = write(scored(), out or trained.folder / name)
    figures: dict[str, float] = {}
    for metric in metrics if known else ():
        figures |= {f"{metric.prefix}/{key}": value for key, value in metric.compute_metrics(metric.results).items()}
    return path, figures


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Arguments; None for the process's.
    """
    parser = argparse.ArgumentParser(prog="python -m frozenllm.motion.submit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="the run folder, or one of its checkpoints")
    parser.add_argument("overrides", nargs="*", help="changes of the run's config, such as data.root=/data/argoverse2")
    parser.add_argument("--split", help="of the data (the benchmark's test split)")
    parser.add_argument("--out", type=Path, help="the file to write (in the run's folder)")
    options = parser.parse_intermixed_args(argv)
    with errors_in_a_sentence():
        trained = load_trained(options.run, options.overrides)
        path, figures = submit(trained, split=options.split, out=options.out)
    if figures:
        print(json.dumps(figures))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
