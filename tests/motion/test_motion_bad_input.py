"""What becomes of data that are damaged, incomplete or not there: one sentence, or a stated way on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from frozenllm.core.training import BrokenSample
from frozenllm.motion.constant_velocity import evaluate
from frozenllm.motion.data import argoverse1, argoverse2, collate_scenes


@pytest.fixture
def copy2(toy2: Path, tmp_path: Path) -> Path:
    """Argoverse 2's toy val, to be damaged."""
    shutil.copytree(toy2 / "val", tmp_path / "av2" / "val")
    return tmp_path / "av2"


@pytest.fixture
def copy1(toy1: Path, tmp_path: Path) -> Path:
    """Argoverse 1's toy val, to be damaged."""
    shutil.copytree(toy1 / "val", tmp_path / "av1" / "val")
    shutil.copytree(toy1 / "map_files", tmp_path / "av1" / "map_files")
    return tmp_path / "av1"


def files2(root: Path, index: int = 2) -> tuple[Path, Path]:
    """Scenario and map of one of them."""
    folder = sorted((root / "val").iterdir())[index]
    return folder / f"scenario_{folder.name}.parquet", folder / f"log_map_archive_{folder.name}.json"


def file1(root: Path, index: int = 2) -> Path:
    """One sequence."""
    return sorted((root / "val/data").iterdir(), key=lambda path: int(path.stem))[index]


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Rewrite a table."""
    if path.suffix == ".csv":
        change(pd.read_csv(path)).to_csv(path, index=False)
    else:
        change(pd.read_parquet(path)).to_parquet(path)


def cut(path: Path, share: float = 0.6) -> None:
    """As after a full disk."""
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def spoil(
    column: str, value: object, where: Callable[[pd.DataFrame], pd.Series]
) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Put a value into some rows."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[where(table), column] = value
        return table

    return change


def focal(table: pd.DataFrame) -> pd.Series:
    return table.track_id == table.focal_track_id


ARGOVERSE2 = {
    "truncated parquet": (lambda s, m: cut(s), "scenario_.*cannot be read as a scenario"),
    "empty parquet": (lambda s, m: s.write_bytes(b""), "cannot be read as a scenario"),
    "no parquet": (lambda s, m: s.unlink(), r"cannot be read as a scenario \(it is missing\)"),
    "a column less": (lambda s, m: edit(s, lambda t: t.drop(columns="heading")), "heading"),
    "no rows": (lambda s, m: edit(s, lambda t: t[:0]), "has no states"),
    "no focal track": (lambda s, m: edit(s, lambda t: t[~focal(t)]), "has no states of its focal track"),
    "a step too many": (lambda s, m: edit(s, spoil("timestep", 110, lambda t: t.index == 5)), "state at step 110"),
    "NaN position": (
        lambda s, m: edit(s, spoil("position_x", np.nan, lambda t: focal(t) & (t.timestep == 49))),
        r"the position of track \d+ at step 49 is not a number",
    ),
    "infinite position of another": (
        lambda s, m: edit(s, spoil("position_y", np.inf, lambda t: (t.track_id == "AV") & (t.timestep == 100))),
        "the position of track AV at step 100 is not a number",
    ),
    "target not in the history": (
        lambda s, m: edit(s, lambda t: t[~focal(t) | (t.timestep >= 50)]),
        r"the target \d+ is not observed in the 50 steps",
    ),
    "no map": (lambda s, m: m.unlink(), r"log_map_archive_.*json is missing: every scenario needs its map"),
    "truncated map": (lambda s, m: cut(m), "cannot be read as a map"),
    "a map without lanes' edges": (
        lambda s, m: m.write_text(json.dumps({"lane_segments": {"1": {"id": 1}}, "drivable_areas": {}})),
        "cannot be read as a map",
    ),
    "NaN in the map": (lambda s, m: m.write_text(re.sub(r'"x": [-\d.]+', '"x": NaN', m.read_text())), "not numbers"),
}


@pytest.mark.parametrize("case", ARGOVERSE2)
def test_broken_scenarios(copy2: Path, case: str) -> None:
    damage, message = ARGOVERSE2[case]
    damage(*files2(copy2))
    name = files2(copy2)[0].parent.name
    with pytest.raises(BrokenSample, match=message) as caught:
        argoverse2(copy2, "val")[2]
    assert name in str(caught.value)
    assert str(caught.value).endswith("; repair or remove it, or set on_error to skip.")
    assert "\n" not in str(caught.value)
    data = argoverse2(copy2, "val", on_error="skip")
    found = evaluate(data)
    assert found["unreadable"] == data.num_unreadable == 1
    batch = next(iter(DataLoader(data, batch_size=6, collate_fn=collate_scenes)))
    assert batch["scenario"][2] == name
    assert [bool(track) for track in batch["track"]] == [True, True, False, True, True, True]
    assert all(torch.isfinite(value.double()).all() for value in batch["inputs"].values())
    assert batch["inputs"]["agents_valid"].flatten(1).any(dim=1).all()


ARGOVERSE1 = {
    "truncated csv": (lambda p: cut(p), "has .* of 50 frames|not a number|a state has no track or no city"),
    "empty csv": (lambda p: p.write_text(""), "cannot be read as a sequence"),
    "binary csv": (lambda p: p.write_bytes(bytes(range(256)) * 9), "cannot be read as a sequence"),
    "header alone": (lambda p: edit(p, lambda t: t[:0]), "has no states"),
    "a column less": (lambda p: edit(p, lambda t: t.drop(columns="X")), "cannot be read as a sequence"),
    "letters for numbers": (lambda p: edit(p, lambda t: t.assign(X="a")), "cannot be read as a sequence"),
    "no agent": (lambda p: edit(p, lambda t: t[t.OBJECT_TYPE != "AGENT"]), "has 0 tracks called AGENT"),
    "two agents": (
        lambda p: edit(p, spoil("OBJECT_TYPE", "AGENT", lambda t: t.OBJECT_TYPE == "AV")),
        "has 2 tracks called AGENT",
    ),
    "NaN position": (
        lambda p: edit(p, spoil("Y", np.nan, lambda t: (t.OBJECT_TYPE == "AGENT") & (t.index < 100))),
        r"the position of track 00000000-.* at step \d+ is not a number",
    ),
    "NaN time": (lambda p: edit(p, spoil("TIMESTAMP", np.nan, lambda t: t.index == 3)), "times that are not numbers"),
    "unknown city": (lambda p: edit(p, lambda t: t.assign(CITY_NAME="NYC")), "in the city NYC, but .* MIA, PIT"),
    "target not in the history": (
        lambda p: edit(p, lambda t: t[(t.OBJECT_TYPE != "AGENT") | t.TIMESTAMP.gt(t.TIMESTAMP.min() + 2.05)]),
        "is not observed in the 20 steps",
    ),
}


@pytest.mark.parametrize("case", ARGOVERSE1)
def test_broken_sequences(copy1: Path, case: str) -> None:
    damage, message = ARGOVERSE1[case]
    path = file1(copy1)
    damage(path)
    with pytest.raises(BrokenSample, match=message) as caught:
        argoverse1(copy1, "val")[2]
    assert path.stem in str(caught.value)
    assert "\n" not in str(caught.value)
    data = argoverse1(copy1, "val", on_error="skip", train=True)
    assert data[2]["scenario"] == data[3]["scenario"] == file1(copy1, 3).stem
    assert data.num_unreadable == 1


def test_gaps_are_no_damage(copy2: Path, copy1: Path) -> None:
    edit(files2(copy2)[0], lambda t: t[~(focal(t) & t.timestep.isin([10, 11, 47, 48, 49, 70]))])
    sample = argoverse2(copy2, "val")[2]
    assert not sample["inputs"]["agents_valid"][0, [10, 11, 47, 48, 49]].any()
    assert not sample["inputs"]["agents"][0, [10, 11, 47, 48, 49]].any()
    assert not sample["inputs"]["agents"][0, 12, 2:4].any()  # no displacement over a gap
    assert sample["inputs"]["agents"][0, 46, :2].abs().max() == 0
    assert not sample["targets"]["valid"][20]
    assert sample["targets"]["valid"].sum() >= 58

    def gap(table: pd.DataFrame) -> pd.DataFrame:
        last = np.sort(table.TIMESTAMP.unique())[19]
        return table[~((table.OBJECT_TYPE == "AGENT") & table.TIMESTAMP.eq(last))]

    edit(file1(copy1), gap)
    sample = argoverse1(copy1, "val")[2]
    assert not sample["inputs"]["agents_valid"][0, 19]
    assert sample["inputs"]["agents"][0, 18, :2].abs().max() == 0
    assert sample["targets"]["valid"].all()


def test_lanes_may_name_lanes_that_are_not_there(copy2: Path) -> None:
    path = files2(copy2)[1]
    archive = json.loads(path.read_text())
    whole = argoverse2(copy2, "val")[2]
    for lane in archive["lane_segments"].values():
        lane["successors"], lane["predecessors"] = [1, 2, 10**9], []
        lane["left_neighbor_id"], lane["right_neighbor_id"] = 10**9, None
    path.write_text(json.dumps(archive))
    assert torch.equal(argoverse2(copy2, "val")[2]["inputs"]["lanes"], whole["inputs"]["lanes"])
    path.write_text(json.dumps({"lane_segments": {}, "drivable_areas": {}, "pedestrian_crossings": {}}))
    assert argoverse2(copy2, "val")[2]["inputs"]["lanes"].shape == (0, 1, 4)


def test_folders_that_are_missing_or_empty(copy2: Path, copy1: Path, tmp_path: Path) -> None:
    for read, root, split, message in (
        (argoverse2, None, "val", r"Argoverse 2 needs its folder: data\.root="),
        (argoverse1, None, "val", r"Argoverse 1 needs its folder: data\.root="),
        (argoverse2, copy2, "train", r"av2/train is missing: name the folder"),
        (argoverse1, copy1, "train", r"av1/train/data is missing: name the folder"),
        (argoverse2, copy2, "test_obs", "Argoverse 2 has the splits train, val, test, not 'test_obs'"),
        (argoverse1, copy1, "test", "Argoverse 1 has the splits train, val, test_obs, not 'test'"),
    ):
        with pytest.raises(ValueError, match=message):
            read(root, split)
    (copy2 / "train").mkdir()
    (copy1 / "train" / "data").mkdir(parents=True)
    (copy2 / "train" / "readme.txt").touch()
    (copy1 / "train" / "data" / "readme.txt").touch()
    with pytest.raises(ValueError, match="av2/train has no scenarios: it should hold one folder per scenario"):
        argoverse2(copy2, "train")
    with pytest.raises(ValueError, match=r"train/data has no sequences: it should hold <number>\.csv files"):
        argoverse1(copy1, "train")
    with pytest.raises(ValueError, match="on_error must be raise or skip"):
        argoverse2(copy2, "val", on_error="ignore")


def test_maps_of_cities_that_are_missing_or_damaged(copy1: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"{folder.name} has no vector maps .* set use_map to false"):
            argoverse1(copy1, "val", maps=folder)
    assert len(argoverse1(copy1, "val", maps=tmp_path / "nowhere", use_map=False)[0]["inputs"]["lanes"]) == 0
    texts = ["<a><way", "<a/>", '<a><way lane_id="1"><nd ref="5"/></way></a>']
    texts.append(re.sub(r' x="[-\d.]+"', ' x="nan"', next((copy1 / "map_files").iterdir()).read_text(), count=3))
    for number, text in enumerate(texts):  # another folder each time: maps are kept in memory by their path
        folder = tmp_path / f"maps{number}"
        folder.mkdir()
        for city in ("MIA_10316", "PIT_10314"):
            (folder / f"pruned_argoverse_{city}_vector_map.xml").write_text(text)
        # A damaged map concerns all sequences of its city, so the policy for single ones does not hide it.
        with pytest.raises(ValueError, match=r"vector_map\.xml cannot be read as a vector map") as caught:
            argoverse1(copy1, "val", maps=folder, on_error="skip")[0]
        assert not isinstance(caught.value, BrokenSample)
