"""Tables of runs, on run folders written by the engine and by hand."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import call
from tinydomain.helpers import command

from frozenllm.core.training import tables
from frozenllm.core.training.journal import by_epoch
from frozenllm.core.training.table_plots import _axis, _common


def write_run(folder: Path, value: float | None, best: float | None = None, **changes: Any) -> None:
    """A run folder with what tables read."""
    summary = {
        "metrics": {} if value is None else {"accuracy/top1": value},
        "best": None if best is None else {"metric": "accuracy/top1", "value": best},
        "trainable": 10, "frozen": 5, "flops": 2e9, "dense_flops": 4e9, "latency": 0.02, "step_seconds": 0.1,
        "finished": True, "epochs": 3, **changes.pop("summary", {}),
    }  # fmt: skip
    config: dict[str, Any] = {"best": "accuracy/top1", "llm": {"kind": "pretrained", "layers": [0]}}
    config["runtime"] = {"seed": changes.pop("seed", 0)}
    config["llm"] |= changes.pop("llm", {})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, **changes}))
    if summary["finished"] is not None:
        (folder / "summary.json").write_text(json.dumps(summary))


def sweep_command(folder: Path, *overrides: str) -> list[str]:
    """``command``, with Hydra's flag before all overrides."""
    known = command(folder, *overrides)
    return [*known[:3], "-m", *known[3:]]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "recipe" / "layers"
    for layer in (11, 2):
        for seed, value in ((0, 50.0 + layer), (1, 54.0 + layer)):
            write_run(
                folder / f"l{layer}s{seed}", value, value + 1, seed=seed, llm={"layers": [layer]},
                sweep=["name=x", f"llm.layers=[{layer}]", f"runtime.seed={seed}"],
                summary={"step_seconds": 0.1 + 0.1 * seed},
            )  # fmt: skip
    write_run(tmp_path / "runs" / "recipe" / "none", 40.0, llm={"kind": "none"}, summary={"step_seconds": 0.05})
    return folder


def test_test_figures_have_a_column_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "seeds"
    for seed, value in ((0, 60.0), (1, 64.0)):
        summary = {"test": {"accuracy/top1": value}}
        write_run(folder / f"a/seed{seed}", 50.0, 51.0, seed=seed, summary=summary)
        write_run(folder / f"b/seed{seed}", 50.0, 51.0, seed=seed, llm={"kind": "none"})
    rows = tables.collect([folder])
    assert {row.name: row.test for row in rows} == {"a": [60.0, 64.0], "b": []}
    head, _, *lines = tables.text_table(rows).splitlines()
    assert head.split()[:4] == ["run", "accuracy/top1", "best", "test"]
    assert lines[0].split()[:8] == ["a", "50.00", "+-", "0.00", "51.00", "62.00", "+-", "2.83"]
    assert lines[1].split()[5] == "-"
    first, second = csv.DictReader(tables.csv_table(rows).splitlines())
    assert (first["test"], second["test"]) == ("62.0", "")


def test_rows_are_arms_with_their_seeds(sweep: Path) -> None:
    host, first, second = tables.collect([sweep], host=sweep.parent / "none")
    assert (host.name, host.is_host, host.values, host.spread) == ("host alone", True, [40.0], None)
    assert (first.name, second.name) == ("llm.layers=[2]", "llm.layers=[11]")  # in the order of numbers
    assert (first.mean, first.spread, first.best) == (54.0, pytest.approx(8**0.5), [53.0, 57.0])
    assert first.settings == {"llm.layers": "[2]"}
    assert first.step_seconds == pytest.approx(0.15)
    assert first.relative_step == pytest.approx(3.0)
    assert first.relative_latency == 1.0
    assert _axis([first, second]) == "llm.layers"


def test_files_hold_the_same_figures(sweep: Path, tmp_path: Path) -> None:
    rows = tables.collect([sweep], host=sweep.parent / "none")
    files = tables.write_tables(rows, tmp_path / "out")
    assert [path.name for path in files] == ["table.txt", "table.csv", "table.json", "table.png"]
    read = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [float(row["mean"]) for row in read] == [40.0, 54.0, 63.0]
    assert [row["llm.layers"] for row in read] == ["", "[2]", "[11]"]
    written = json.loads((tmp_path / "out" / "table.json").read_text())
    assert [row["mean"] for row in written] == [40.0, 54.0, 63.0]
    text = (tmp_path / "out" / "table.txt").read_text()
    assert "54.00 +- 2.83" in text
    assert "3.00" in text
    assert text.splitlines()[2].startswith("host alone")


def test_unfinished_and_broken_runs_are_said_to_be(sweep: Path) -> None:
    write_run(
        sweep / "waiting", None, sweep=["name=x", "llm.layers=[5]"], llm={"layers": [5]}, summary={"finished": None}
    )
    write_run(
        sweep / "short", 9.0, sweep=["name=x", "llm.layers=[6]"], llm={"layers": [6]}, summary={"finished": False}
    )
    write_run(sweep / "broken", float("nan"), sweep=["name=x", "llm.layers=[7]"], llm={"layers": [7]})
    rows = {row.name: row for row in tables.collect([sweep])}
    assert rows["llm.layers=[5]"].note == "no result yet"
    assert rows["llm.layers=[5]"].mean is None
    assert rows["llm.layers=[6]"].note == "stopped after 3 epochs"
    assert (rows["llm.layers=[7]"].note, rows["llm.layers=[7]"].values) == ("accuracy/top1 is nan", [])
    assert rows["llm.layers=[2]"].relative_step is None  # there is no host
    tables.write_tables(list(rows.values()), sweep)


def test_two_sweeps_in_one_table(sweep: Path) -> None:
    other = sweep.parent / "other"
    for layer in (1, 3):
        write_run(other / f"l{layer}", 60.0, llm={"layers": [layer], "source": "opt"}, sweep=[f"llm.layers=[{layer}]"])
    rows = tables.collect([sweep, other])
    assert [Path(row.group).name for row in rows] == ["layers", "layers", "other", "other"]
    assert _axis(rows) == "llm.layers"  # what differs within each sweep
    tables.write_tables(rows, sweep)


def test_what_is_wrong_is_one_sentence(tmp_path: Path, sweep: Path) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        tables.collect([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="No run has a value of loss/val"):
        tables.collect([sweep], metric="loss/val")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        tables.write_tables(tables.collect([sweep]), tmp_path / "file" / "out")


def test_names_without_what_they_share() -> None:
    assert _common(["llm.layers=[1]", "llm.layers=[11]"]) == "llm.layers="
    assert _common(["llm=none", "llm=bundled"]) == "llm="
    assert _common(["one"]) == ""


def test_losses_by_epoch(tmp_path: Path) -> None:
    lines = [
        {"kind": "train", "epoch": 1, "iter": 1, "loss": 3.0},
        {"kind": "train", "epoch": 1, "iter": 2, "loss": 1.0},
        {"kind": "val", "epoch": 1, "iter": 2, "cross_entropy/mean": 2.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert by_epoch(tmp_path / "metrics.jsonl", "cross_entropy/mean") == ({1: 2.0}, {1: 2.5})
    lines += [
        {"kind": "train", "epoch": 2, "iter": 5, "loss": 1.0},  # of three iterations
        {"kind": "train", "epoch": 2, "iter": 6, "loss": 5.0},  # of one
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert by_epoch(tmp_path / "metrics.jsonl", "cross_entropy/mean")[0] == {1: 2.0, 2: 2.0}


def test_names_may_hold_dollars(tmp_path: Path) -> None:
    for name in ("a$_$", "b$_$"):
        write_run(tmp_path / name, 50.0)
    tables.write_tables(tables.collect([tmp_path]), tmp_path / "out")
    assert (tmp_path / "out" / "table.png").is_file()


def test_a_named_sweep_ends_with_its_table(tmp_path: Path) -> None:
    """Through the command line: seeds are one row, costs are measured, and the command makes the same table again."""
    metrics = "metrics=[{type: Accuracy},{type: CrossEntropy}]"
    sweep = sweep_command(tmp_path, "name=mine", "llm.seed=0,1", "runtime.seed=0,1", "schedule.epochs=2", metrics)
    done = call(sweep, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "tiny" / "mine"
    rows = json.loads((folder / "table.json").read_text())
    assert [row["name"] for row in rows] == ["llm.seed=0", "llm.seed=1"]
    for row in rows:
        assert len(row["values"]) == 2
        assert 0 < row["flops"] <= row["dense_flops"]
        assert row["latency"] > 0
    assert (folder / "losses.png").stat().st_size > 10_000
    text = (folder / "table.txt").read_text()
    assert text.strip() in done.stdout
    again = call([sys.executable, "-m", "frozenllm.core.training.tables", str(folder)], tmp_path)
    assert again.returncode == 0, again.stderr
    assert text.strip() in again.stdout
    shutil.rmtree(folder)
    gone = call([sys.executable, "-m", "frozenllm.core.training.tables", str(folder)], tmp_path)
    assert gone.returncode == 1
    assert gone.stderr.startswith("error: ")
    assert len(gone.stderr.strip().splitlines()) == 1


def test_a_sweep_over_names_has_no_table_and_says_so(tmp_path: Path) -> None:
    sweep = sweep_command(tmp_path, "llm=random,none", "schedule.epochs=2", "llm.source=null", "runtime.stop_after=2")
    done = call(sweep, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no table" in done.stdout
    assert "name=..." in done.stdout
