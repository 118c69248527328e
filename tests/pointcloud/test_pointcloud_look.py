"""Token activations on the cloud: the maps, the pictures, the command."""

from __future__ import annotations

import builtins
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from frozenllm.core.training import compose_config, train
from frozenllm.pointcloud import PointBERT, look
from frozenllm.pointcloud.model import Groups
from frozenllm.pointcloud.train import CONFIG

SPEC = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48}


def small(llm: Any = None) -> PointBERT:
    torch.manual_seed(0)
    return PointBERT(5, 24, 1, 2, num_groups=6, group_size=8, encoder_dim=16, llm=llm).eval()


def test_values_spread_over_the_points_of_their_groups() -> None:
    points = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [9, 0, 0]]])
    groups = Groups(torch.empty(0), points[:, [0, 2]], torch.tensor([[[0, 1], [2, 1]]]))
    spread = look.spread(torch.tensor([[1.0, 3.0]]), groups, points)
    assert spread.tolist() == [[1.0, 2.0, 3.0, 3.0]]  # in both groups: the mean; in none: the nearest centre's


def test_maps_of_host_and_layer() -> None:
    points = torch.randn(3, 60, 3, generator=torch.Generator().manual_seed(0))
    alone = look.activation_maps(small(), points)
    both = look.activation_maps(small({"kind": "random", "spec": SPEC}), points)
    assert list(alone) == ["host"]
    assert list(both) == ["host", "frozen layer"]
    for values in both.values():
        assert values.shape == (3, 60)
        assert values.min() >= 0
        assert values.max() <= 1
    torch.testing.assert_close(both["host"], alone["host"])  # under one seed, the hosts are equal
    assert (both["host"] - both["frozen layer"]).abs().max() > 0.05
    tokens: Tensor = small().tokens(points)[:, 1:]
    distance = (tokens - tokens.mean(1, keepdim=True)).norm(dim=2)
    low, high = distance.amin(1, keepdim=True), distance.amax(1, keepdim=True)
    wanted = look.spread((distance - low) / (high - low), small().group(points), points)
    torch.testing.assert_close(alone["host"], wanted)
    assert not torch.equal(look.activation_maps(small(), points, "frequency")["host"], alone["host"])
    with pytest.raises(ValueError, match="must be one of magnitude, frequency"):
        look.activation_maps(small(), points, "colour")


@pytest.fixture(scope="module")
def run(scans_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = ["data=scanobjectnn", f"data.root={scans_root}", "data.variant=objectonly", "data.num_points=48"]
    overrides += ["model.embed_dim=24", "model.depth=1", "model.group_size=8", "runtime.console=false"]
    overrides += ["schedule.epochs=1", "schedule.warmup_epochs=0", f"runs={tmp_path_factory.mktemp('runs')}"]
    return Path(train(compose_config(CONFIG, overrides)).run_dir)


def test_the_command_draws_a_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("plotly", reason="needs the extra [html]")
    look.main([str(run), "--count", "2", "--out", str(tmp_path / "new")])
    assert capsys.readouterr().out.splitlines() == [f"wrote {tmp_path}/new/look.{end}" for end in ("png", "html")]
    with Image.open(tmp_path / "new" / "look.png") as image:
        assert image.size == (624, 648)
        colours = image.convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100  # dots in the colours of a map
    assert max(colours)[1] == (255, 255, 255)
    page = (tmp_path / "new" / "look.html").read_text()
    assert page.count('"type":"scatter3d"') >= 4  # two clouds, before and after the layer
    assert "class 0, predicted" in page
    assert 'src="http' not in page  # complete in itself


def test_several_runs_share_a_picture(run: Path, tmp_path: Path) -> None:
    look.main([str(run), str(run.parent / ".." / run.parent.name / run.name), "--count", "1", "--out", str(tmp_path)])
    with Image.open(tmp_path / "look.png") as image:
        assert image.size == (312, 648)  # the same rows from the same run


def test_mistakes_give_one_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        look.main([str(tmp_path)])
    assert "is not the folder of a run: it has no checkpoints/last.pt" in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        look.main([str(run), "--count", "0"])
    assert "--count must be 1 or more" in str(stopped.value)
    other = shutil.copytree(run, tmp_path / "other")
    checkpoint = torch.load(other / "checkpoints" / "last.pt", weights_only=True)
    changed = checkpoint["meta"]["config"].replace("variant: objectonly", "variant: hardest")
    assert changed != checkpoint["meta"]["config"]
    checkpoint["meta"]["config"] = changed
    torch.save(checkpoint, other / "checkpoints" / "last.pt")
    with pytest.raises(SystemExit) as stopped:
        look.main([str(run), str(other)])
    assert f"error: {other} was tested on other clouds than {run}" in str(stopped.value)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'frozenllm-pointcloud\[html\]'"):
        look.save_html(tmp_path / "x.html", torch.zeros(1, 4, 3), {"a": torch.zeros(1, 4)}, ["t"])
    look.main([str(run), "--count", "1", "--out", str(tmp_path)])  # the picture is drawn all the same
    wrote, left_out = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {tmp_path / 'look.png'}"
    assert re.fullmatch(r"no look\.html: .* pip install 'frozenllm-pointcloud\[html\]'\.", left_out)
