"""ScanNet's scans: reading, preparation, and everything that can be wrong with the files."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from frozenllm.core.training import BrokenSample
from frozenllm.vqa.scenes import scannet
from frozenllm.vqa.scenes.arrays import ARRAYS, SceneFolder, read_scene
from frozenllm.vqa.scenes.classes import CLASSES, IGNORED, MEAN_SIZES, class_of
from frozenllm.vqa.scenes.prepare import main, prepare
from frozenllm.vqa.scenes.scannet import BrokenScan, read_labels, read_mesh, scan_arrays

SCAN = "scene0001_00"
LABELS = {"floor": 2, "office chair": 5, "whiteboard": 30}
TURN = Rotation.from_euler("z", 90, degrees=True)


def write_scan(folder: Path, vertices: np.ndarray | None = None, faces: list[list[int]] | None = None) -> Path:
    """A scan by hand: a floor triangle, a chair (two segments) and a board; alignment is a quarter turn and a shift."""
    plyfile = pytest.importorskip("plyfile", reason="needs the extra [scenes]")
    scan = folder / SCAN
    scan.mkdir(parents=True)
    if vertices is None:
        vertices = np.array(
            [(0, 0, 0), (4, 0, 0), (0, 2, 0), (1, 1, 0), (2, 1, 0.5), (1, 1.5, 1), (3, 0, 1), (3, 1, 1), (3, 1, 2)]
        )
    kinds = [(name, "f4") for name in "xyz"] + [(name, "u1") for name in ("red", "green", "blue", "alpha")]
    table = np.array([(*xyz, 10 * i, 20, 30, 255) for i, xyz in enumerate(vertices.tolist())], dtype=kinds)
    face = np.empty(0 if faces is not None else 3, dtype=[("vertex_indices", "O")])
    if faces is None:
        face["vertex_indices"] = [np.array(f, dtype="i4") for f in ([0, 1, 2], [3, 4, 5], [6, 7, 8])]
    else:
        face = np.empty(len(faces), dtype=[("vertex_indices", "O")])
        face["vertex_indices"] = [np.array(f, dtype="i4") for f in faces]
    elements = [plyfile.PlyElement.describe(table, "vertex")]
    elements += [plyfile.PlyElement.describe(face, "face", val_types={"vertex_indices": "i4"})]
    plyfile.PlyData(elements, byte_order="<").write(str(scan / f"{SCAN}_vh_clean_2.ply"))
    segments = [7, 7, 7, 11, 11, 40, 3, 3, 3][: len(vertices)]
    (scan / f"{SCAN}_vh_clean_2.0.010000.segs.json").write_text(json.dumps({"segIndices": segments}))
    groups = [
        {"id": 0, "objectId": 0, "segments": [7], "label": "floor"},
        {"id": 1, "objectId": 1, "segments": [11, 40], "label": "office chair"},
        {"id": 2, "objectId": 2, "segments": [3], "label": "whiteboard"},
    ]
    (scan / f"{SCAN}.aggregation.json").write_text(json.dumps({"segGroups": groups}))
    align = np.eye(4)
    align[:3, :3], align[:3, 3] = TURN.as_matrix(), (10, 20, 30)
    numbers = " ".join(f"{number:.6f}" for number in align.ravel())
    (scan / f"{SCAN}.txt").write_text(f"appVersionId = 9\naxisAlignment = {numbers} \nsceneType = Office\n")
    return scan


def write_table(folder: Path) -> Path:
    rows = ["id\traw_category\tcategory\tcount\tnyu40id\tnyu40class"]
    rows += [f"{i}\t{name}\tx\t1\t{number}\tx" for i, (name, number) in enumerate(LABELS.items())]
    path = folder / scannet.LABELS
    path.write_text("\n".join(rows) + "\n")
    return path


def test_classes_are_those_of_sqa3d() -> None:
    assert len(CLASSES) == len(MEAN_SIZES) == 18
    known = {3: "cabinet", 5: "chair", 7: "table", 14: "desk", 28: "shower curtain", 36: "bathtub", 39: "others"}
    assert [CLASSES[c] for c in class_of(np.array(list(known)))] == list(known.values())
    assert (class_of(np.array([0, 1, 2, 22, 41, 999])) == IGNORED).all()


def test_arrays_of_a_scan_by_hand(tmp_path: Path) -> None:
    arrays = scan_arrays(write_scan(tmp_path), LABELS)
    assert tuple(arrays) == ARRAYS
    assert arrays["vert"].shape == arrays["aligned_vert"].shape == (9, 9)
    assert arrays["vert"][4, :6].tolist() == [2, 1, 0.5, 40, 20, 30]
    # A quarter turn takes (x, y) to (-y, x).
    np.testing.assert_allclose(arrays["aligned_vert"][4, :3], [9, 22, 30.5], atol=1e-5)
    assert arrays["sem_label"].tolist() == [2, 2, 2, 5, 5, 5, 30, 30, 30]
    assert arrays["ins_label"].tolist() == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    # The floor is no object of the detector; boxes: centre, size, NYU40 id, object number from 0.
    np.testing.assert_allclose(arrays["bbox"], [[1.5, 1.25, 0.5, 1, 0.5, 1, 5, 1], [3, 0.5, 1.5, 0, 1, 1, 30, 2]])
    expected = [[8.75, 21.5, 30.5, 0.5, 1, 1, 5, 1], [9.5, 23, 31.5, 1, 0, 1, 30, 2]]
    np.testing.assert_allclose(arrays["aligned_bbox"], expected, atol=1e-5)
    np.testing.assert_allclose(arrays["vert"][:3, 6:], [[0, 0, 1]] * 3, atol=1e-6)  # the floor looks up
    np.testing.assert_allclose(arrays["vert"][6, 6:], [1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(arrays["aligned_vert"][6, 6:], [0, 1, 0], atol=1e-6)


def test_large_scans_are_thinned_alike_and_keep_their_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = write_scan(tmp_path)
    whole = scan_arrays(scan, LABELS)
    monkeypatch.setattr(scannet, "MAX_POINTS", 7)
    first, second = (scan_arrays(scan, LABELS) for _ in range(2))
    for name in ARRAYS:
        np.testing.assert_array_equal(first[name], second[name])
    assert len(first["vert"]) == len(first["ins_label"]) == 7
    for end in (np.min, np.max):
        np.testing.assert_array_equal(end(first["vert"][:, :3], 0), end(whole["vert"][:, :3], 0))
    np.testing.assert_array_equal(first["aligned_bbox"], whole["aligned_bbox"])


def test_meshes_without_faces_or_with_other_polygons(tmp_path: Path) -> None:
    ply = f"{SCAN}_vh_clean_2.ply"
    assert not read_mesh(write_scan(tmp_path / "none", faces=[]) / ply)[:, 6:].any()
    with pytest.raises(BrokenScan, match="no triangles"):
        read_mesh(write_scan(tmp_path / "squares", faces=[[0, 1, 2, 3]]) / ply)
    with pytest.raises(BrokenScan, match="do not exist"):
        read_mesh(write_scan(tmp_path / "beyond", faces=[[0, 1, 99]]) / ply)


@pytest.mark.parametrize("name", ["vh_clean_2.ply", "vh_clean_2.0.010000.segs.json", "aggregation.json", "txt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    scan = write_scan(tmp_path)
    file = next(path for path in scan.iterdir() if path.name.endswith(name))
    file.unlink()
    with pytest.raises(BrokenScan, match=f"lacks {file.name}"):
        scan_arrays(scan, LABELS)


def change(scan: Path, suffix: str, text: str) -> None:
    (scan / f"{SCAN}{suffix}").write_text(text)


@pytest.mark.parametrize(
    ("suffix", "text", "message"),
    [
        ("_vh_clean_2.ply", "ply", "cannot be read as a mesh"),
        ("_vh_clean_2.ply", "", "cannot be read as a mesh"),
        ("_vh_clean_2.0.010000.segs.json", '{"segIndices": [1, 2]}', "of another mesh: it has 2 entries for 9"),
        ("_vh_clean_2.0.010000.segs.json", '{"segIndices": [1,', "not JSON"),
        ("_vh_clean_2.0.010000.segs.json", "{}", "no list 'segIndices'"),
        ("_vh_clean_2.0.010000.segs.json", '{"segIndices": ["a",1,1,1,1,1,1,1,1]}', "do not belong together"),
        (
            ".aggregation.json",
            '{"segGroups": [{"objectId": 0, "segments": [99], "label": "floor"}]}',
            "belong together",
        ),
        (".aggregation.json", '{"segGroups": [{"objectId": 0, "segments": [7], "label": "sofa"}]}', "label 'sofa'"),
        (".aggregation.json", '{"segGroups": [{"segments": [7], "label": "floor"}]}', "belong together"),
        (".txt", "axisAlignment = 1 2 3", "not 16 numbers"),
        (".txt", "axisAlignment = " + "1 " * 16, "not a turn and a shift"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, suffix: str, text: str, message: str) -> None:
    scan = write_scan(tmp_path)
    change(scan, suffix, text)
    with pytest.raises(BrokenScan, match=message) as caught:
        scan_arrays(scan, LABELS)
    assert SCAN in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_infinite_meshes(tmp_path: Path) -> None:
    scan = write_scan(tmp_path / "empty", np.zeros((0, 3)), faces=[])
    with pytest.raises(BrokenScan, match="is empty"):
        scan_arrays(scan, LABELS)
    scan = write_scan(tmp_path / "infinite", np.full((1, 3), np.inf), faces=[])
    with pytest.raises(BrokenScan, match="not finite"):
        scan_arrays(scan, LABELS)


def test_without_alignment_a_scan_stays_as_it_is(tmp_path: Path) -> None:
    scan = write_scan(tmp_path)
    change(scan, ".txt", "sceneType = Office\n")
    arrays = scan_arrays(scan, LABELS)
    np.testing.assert_array_equal(arrays["vert"], arrays["aligned_vert"])


def test_prepare_goes_on_and_names_broken_scans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    write_table(tmp_path)  # beside the scans, where it is looked for
    write_scan(scans)
    (scans / "scene0002_00").mkdir()
    (scans / "notes").mkdir()
    report = prepare(scans, out, progress=False)
    assert (report["ready"], report["new"], list(report["broken"])) == (1, 1, ["scene0002_00"])
    assert json.loads((out / "report.json").read_text()) == report
    assert sorted(path.name for path in out.glob("*.npy")) == sorted(f"{SCAN}_{name}.npy" for name in ARRAYS)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npy")}
    shutil.copytree(scans / SCAN, scans / "scene0002_00", dirs_exist_ok=True)
    for path in (scans / "scene0002_00").iterdir():
        path.rename(path.with_name(path.name.replace(SCAN, "scene0002_00")))
    (out / f".{SCAN}_vert.npy").write_bytes(b"half")  # what a killed run leaves
    main([str(scans), str(out)])
    assert "2 of 2 scans are ready, 1 of them new" in capsys.readouterr().out
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert not list(out.glob(".*"))
    (out / f"{SCAN}_sem_label.npy").write_bytes((out / f"{SCAN}_sem_label.npy").read_bytes()[:-4])  # cut off
    assert prepare(scans, out, progress=False)["new"] == 1


def test_prepare_stops_at_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    with pytest.raises(ValueError, match=r"folder of scans .* does not exist"):
        prepare(scans, out)
    write_scan(scans)
    with pytest.raises(ValueError, match="--labels"):
        prepare(scans, out, progress=False)
    table = write_table(tmp_path)
    change(scans / SCAN, ".txt", "axisAlignment = 1")
    with pytest.raises(SystemExit, match=r"error: .*not 16 numbers; repair or remove the scan"):
        main([str(scans), str(out), "--on-error", "raise"])
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds no scans"):
        prepare(out, out, labels=table)
    for text, message in [("a\tb\n1\t2\n", "raw_category"), ("raw_category\tnyu40id\n", "no categories")]:
        table.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_labels(table)


def test_prepare_takes_the_scans_that_are_asked_about(rooms_root: Path, tmp_path: Path) -> None:
    few = tmp_path / "scans"
    few.mkdir()
    shutil.copytree(rooms_root / "scans/scene0003_00", few / "scene0003_00")
    report = prepare(
        few, tmp_path / "out", labels=rooms_root / scannet.LABELS, questions=str(rooms_root), progress=False
    )
    assert report["ready"] == 1
    assert len(report["broken"]) == 13
    assert "lacks" in report["broken"]["scene0000_00"]
    for name in ARRAYS:  # and in two processes, and written before: the same bytes
        ours, toys = (folder / f"scene0003_00_{name}.npy" for folder in (tmp_path / "out", rooms_root / "scannet_data"))
        assert ours.read_bytes() == toys.read_bytes()


def test_scenes_are_read_with_rows_of_boxes(tmp_path: Path) -> None:
    write_table(tmp_path)
    write_scan(tmp_path / "scans")
    prepare(tmp_path / "scans", tmp_path / "out", progress=False)
    scene = read_scene(tmp_path / "out", SCAN)
    assert scene.instance.tolist() == [-1] * 3 + [0] * 3 + [1] * 3
    assert scene.semantic.tolist() == [-1] * 3 + [2] * 3 + [17] * 3
    assert scene.classes.tolist() == [2, 17]
    assert scene.centre.tolist() == [2, 1, 1]
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = TURN.as_matrix(), (10, 20, 30)
    np.testing.assert_allclose(scene.align, expected, atol=1e-5)


def edit(folder: Path, name: str, value: Any) -> None:
    np.save(folder / f"{SCAN}_{name}.npy", value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vert", np.zeros((0, 9)), "with a row"),
        ("aligned_vert", np.zeros((9, 9)), "do not belong together"),
        ("aligned_vert", np.full((9, 9), np.nan), "not finite"),
        ("ins_label", np.zeros(8, dtype=np.uint32), "for each of 9 vertices"),
        ("aligned_bbox", np.zeros((2, 7)), "8 columns"),
        ("sem_label", np.array([{}] * 9), "cannot be read as an array"),
    ],
)
def test_damaged_arrays_are_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    write_table(tmp_path)
    write_scan(tmp_path / "scans")
    prepare(tmp_path / "scans", tmp_path / "out", progress=False)
    edit(tmp_path / "out", name, value)
    with pytest.raises(BrokenSample, match=message) as caught:
        read_scene(tmp_path / "out", SCAN)
    assert SCAN in str(caught.value)


def test_scene_folder_keeps_the_latest(rooms_root: Path, tmp_path: Path) -> None:
    folder = SceneFolder(rooms_root / "scannet_data", kept=2)
    first = folder.read("scene0000_00")
    folder.read("scene0001_00")
    assert folder.read("scene0000_00") is first
    folder.read("scene0002_00")  # the second one goes
    assert folder.read("scene0000_00") is first
    with pytest.raises(BrokenSample, match=r"scene9999_00_vert.npy does not exist"):
        folder.read("scene9999_00")
    with pytest.raises(ValueError, match="does not exist: make it with"):
        SceneFolder(tmp_path / "nowhere")


def test_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = write_scan(tmp_path)
    monkeypatch.setitem(sys.modules, "plyfile", None)
    with pytest.raises(ImportError, match=r"plyfile is missing .* pip install 'frozenllm-vqa\[scenes\]'"):
        scan_arrays(scan, LABELS)


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    heavy = re.compile(r"^(?:import|from) (?:plyfile|scipy|mmdet3d|mmcv|mmdet|frozenllm\.pointcloud)", re.MULTILINE)
    folder = Path(scannet.__file__).parent
    files = [*folder.glob("*.py"), *(folder.parent / "toy").glob("*.py")]
    assert not [file.name for file in files if heavy.search(file.read_text())]
