"""What happens at the end of a sweep: its table and plots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from frozenllm.core.training.rows import collect
from frozenllm.core.training.tables import text_table, write_tables


class SweepTable(Callback):
    """Hydra's callback that writes the table of a sweep into the folder of its runs.

    The runs of a sweep share the folder ``<runs>/<recipe>/<name>`` if nothing that is swept is part of the name: an
    ablation, or a sweep with ``name=...``.

    Args:
        host: Folder of the host alone, which times are given relative to: ``hydra.callbacks.table.host=...``.
    """

    def __init__(self, host: str | None = None) -> None:
        self.host = Path(host).expanduser() if host else None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra after the last run."""
        if os.environ.get("RANK", "0") != "0":  # torchrun: every process has the same sweep
            return
        recipe = config.hydra.runtime.choices.get("recipe") or "default"
        folder = Path(config.runs).expanduser() / recipe / config.name
        try:
            rows = collect([folder], self.host)
            if len(rows) < 2:
                raise ValueError(f"{folder} holds one of the sweep's runs only.")
            files = write_tables(rows, folder)
        except ValueError as error:
            print(f"no table: {error} Give a sweep a name=..., or call python -m frozenllm.core.training.tables.")
            return
        print(f"\n{text_table(rows)}\n\nwrote " + ", ".join(map(str, files)), flush=True)
