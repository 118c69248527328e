"""What the tests of every domain's study share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from training_tools import trained

from frozenllm.core.analysis.study import Finding, Study

TAPS = {"host", "adapter_in", "attention_residual", "ffn_residual", "adapter_out"}
"""Where a model with a language-model block is studied."""


def short_runs(config: str, overrides: Sequence[str], arms: Sequence[str] = ("none", "bundled")) -> dict[str, Path]:
    """Folders of runs of four steps, by the choice of ``llm``.

    Args:
        config: Package with the config files.
        overrides: Recipe, data, and ``runs=...``.
        arms: Choices of ``llm``.
    """
    return {arm: Path(trained(config, f"llm={arm}", *overrides, "runtime.stop_after=4").run_dir) for arm in arms}


def one(study: Study, name: str, tap: str | None, kind: str = "magnitude") -> Finding:
    """The finding of that name, place and kind."""
    (finding,) = [f for f in study.findings if (f.name, f.tap, f.kind) == (name, tap, kind)]
    return finding


@contextmanager
def gone(root: Path) -> Iterator[None]:
    """Data that is not where it was; what comes to its place meanwhile is removed."""
    aside = root.rename(root.with_name("aside"))
    try:
        yield
    finally:
        shutil.rmtree(root, ignore_errors=True)
        aside.rename(root)
