"""The information-filtering study of image classifiers: of runs, of a user's own models, and of arms side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from frozenllm.core import FrozenLLMLayer, load_block
from frozenllm.core.analysis import analyse, class_attention, frequency, inside_outside, magnitude, min_max, tapped
from frozenllm.core.analysis.analyse import TAPS
from frozenllm.core.analysis.study import read_study
from frozenllm.core.training import compose_config, train
from frozenllm.vision2d import filtering as filtering_tool
from frozenllm.vision2d.arms import AUROC, IOU
from frozenllm.vision2d.imagenet_s import IGNORED, imagenet_s
from frozenllm.vision2d.masks import TokenRule
from frozenllm.vision2d.measures import measure
from frozenllm.vision2d.study import main, study
from frozenllm.vision2d.toy_imagenet_s import write_toy_imagenet_s
from frozenllm.vision2d.train import CONFIG

GRID = (8, 8)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two validation images of each class."""
    return write_toy_imagenet_s(tmp_path_factory.mktemp("toy") / "ImageNetS10", views=1, limit=10)


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A step each of a host alone, with the bundled block, and with an MLP."""
    folder = tmp_path_factory.mktemp("runs")
    common = [
        "recipe=toy_imagenet_s",
        f"runs={folder}",
        f"data.root={toy}",
        "data.train.type=image_folder",
        "data.val.type=image_folder",
        "model.depth=2",
        "model.embed_dim=32",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
        "runtime.stop_after=1",
        "runtime.console=false",
        "runtime.plots=false",
    ]
    return {
        llm: Path(train(compose_config(CONFIG, [*common, f"llm={llm}"])).run_dir) for llm in ("none", "bundled", "mlp")
    }


def _vit(**options: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=32, depth=3, num_heads=2, num_classes=7, **options
    ).eval()


class UsersModel(nn.Module):
    """Somebody's classifier: timm's blocks, a frozen layer of their own choice of place."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.host = _vit()
        self.after = after
        self.filter = FrozenLLMLayer(32, load_block("bundled"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.host._pos_embed(self.host.patch_embed(images))
        for number, block in enumerate(self.host.blocks):
            tokens = block(tokens)
            if number + 1 == self.after:
                tokens = self.filter(tokens)
        return self.host.forward_head(self.host.norm(tokens))


def _images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("after", [3, 1])
def test_a_users_own_model_in_three_lines(after):
    torch.manual_seed(0)
    model, images = UsersModel(after), _images()
    relevant = torch.rand(5, 64, generator=torch.Generator().manual_seed(1)) < 0.3
    analysis = analyse(model, images, grid=GRID, blocks=model.host.blocks)
    table = analysis.table(relevant)
    assert "IoU with the object, honest threshold" in table
    with torch.no_grad(), tapped(model, attention_weights=True) as taps:
        expected = model(images)
    assert torch.allclose(analysis.outputs, expected, atol=1e-5)
    for tap in TAPS:
        assert torch.allclose(analysis.map("magnitude", tap).flatten(1), magnitude(taps[tap][:, 1:]), atol=1e-5)
        assert torch.allclose(analysis.map("frequency", tap).flatten(1), frequency(taps[tap][:, 1:]), atol=1e-5)
    paid = class_attention(taps["attention_weights"][..., 1:])
    assert torch.allclose(analysis.activations["attention", "attention_weights"], paid, atol=1e-5)
    assert analysis.map("attention", "host").shape == (5, *GRID)
    before = [f"block {n}" for n in range(1, after)]
    stream = ["host", "adapter_in", "attention_residual", "ffn_residual", "adapter_out"]
    assert list(analysis.strengths) == [*before, *stream, *[f"block {n}" for n in range(after + 1, 4)]]
    ratio = inside_outside(magnitude(taps["host"][:, 1:], normalize=False), relevant)
    assert torch.allclose(inside_outside(analysis.strengths["host"], relevant), ratio, atol=1e-4)


def test_a_layer_put_among_timms_blocks_is_found():
    model = _vit()
    model.blocks.insert(1, FrozenLLMLayer(32, load_block("bundled")))
    analysis = analyse(model, [(_images(3), torch.zeros(3)), (_images(2), torch.zeros(2))], grid=GRID)
    assert len(analysis) == 5
    assert next(iter(analysis.strengths)) == "host"
    assert list(analysis.strengths)[-2:] == ["block 2", "block 3"]
    host = _vit()
    alone = analyse(host, _images(), grid=GRID)
    assert list(alone.strengths) == ["block 1", "block 2", "host"]
    with torch.no_grad():
        tokens = host.forward_intermediates(_images(), output_fmt="NLC", intermediates_only=True)[-1]
    assert torch.allclose(alone.activations["magnitude", "host"], min_max(magnitude(tokens)), atol=1e-5)


def test_what_cannot_be_analysed_is_said():
    with pytest.raises(ValueError, match="has 81 patches, but the layer sees 65 tokens"):
        analyse(_vit(), _images(), grid=(9, 9))
    with pytest.raises(ValueError, match="no frozen layer and no blocks"):
        analyse(nn.Linear(3, 3), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no data"):
        analyse(_vit(), [], grid=GRID)
    two = nn.Sequential(*(FrozenLLMLayer(32, load_block("bundled")) for _ in range(2)))
    with pytest.raises(ValueError, match="several frozen layers"):
        analyse(two, torch.zeros(1, 4, 32))
    assert analyse(two, torch.rand(2, 4, 32), layer="1").outputs is None


def test_relevant_patches_are_those_of_the_masks(runs, toy):
    measured = measure(runs["bundled"], coherence=False)
    data = imagenet_s(toy, {"input_size": 32, "crop_pct": 1.0})
    assert len(measured.names) == len(data) == 20
    ids = torch.stack([data[i]["mask"] for i in range(20)])
    relevant, counted = TokenRule("majority").tokens((ids > 0) & (ids != IGNORED), ids == IGNORED, GRID)
    assert measured.relevant.equal(relevant)
    assert measured.counted.equal(counted)
    patch = data[3]["inputs"][:, 8:12, 16:20].flatten()  # row 2, column 4
    patches = data[3]["inputs"].unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(64, 48)
    assert torch.equal(patches[2 * 8 + 4], patch)
    assert torch.allclose(measured.analysis.activations["magnitude", "pixels"][3], magnitude(patches[None])[0])
    elsewhere = measure(runs["bundled"], masks=toy, coherence=False)
    assert elsewhere.relevant.equal(relevant)
    assert elsewhere.names == measured.names
    assert not elsewhere.own_classes


def test_a_run_is_studied_by_one_command(runs, capsys):
    main([str(runs["bundled"]), "--samples", "2", "--rule", "any"])
    printed = capsys.readouterr().out
    assert "IoU with the object, honest threshold" in printed
    found = read_study(runs["bundled"])
    honest = {(f.kind, f.tap) for f in found.findings if "honest" in f.name}
    assert honest == {(kind, tap) for kind in ("magnitude", "frequency") for tap in ("pixels", *TAPS)} | {
        ("attention", "host"),
        ("attention", "attention_weights"),
    }
    for finding in found.findings:
        assert finding.low <= finding.value <= finding.high, finding
        assert finding.samples == (20 if "coherence" not in finding.name else finding.samples)
    assert any("Gradient coherence" in f.name for f in found.findings)
    assert any("'any'" in note for note in found.notes)
    assert len(found.samples) == 2
    assert len(found.samples[0].relevant) == 64
    assert found.samples[0].frames[0].picture.size == (224, 224)
    assert len(found.pictures) == 2


@pytest.mark.parametrize(("llm", "taps"), [("none", set()), ("mlp", {"adapter_in", "adapter_out"})])
def test_hosts_alone_and_other_layers_are_studied(runs, llm, taps):
    found = study(runs[llm], samples=0, limit=10)
    assert {f.tap for f in found.findings if "honest" in f.name and f.kind == "magnitude"} == taps | {"pixels", "host"}
    assert not found.samples


def test_digits_have_their_ink_as_mask(digits_root, tmp_path):
    overrides = ["recipe=digits", f"runs={tmp_path}", f"data.root={digits_root}", "llm=none", "runtime.stop_after=1"]
    run = train(compose_config(CONFIG, [*overrides, "runtime.console=false", "runtime.plots=false"])).run_dir
    found = study(run, limit=16, samples=1)
    assert any("the digit's ink, honest" in f.name for f in found.findings)


def test_users_mistakes_are_answered_in_a_sentence(runs, tmp_path):
    for arguments, sentence in (
        ([str(tmp_path)], "not the folder of a run"),
        ([str(runs["none"]), "--rule", "most"], "rule for tokens must be"),
        ([str(runs["none"]), "--masks", str(tmp_path)], "holds no validation/"),
        ([str(runs["none"]), "--limit", "0"], "limit must be 1 or more"),
    ):
        with pytest.raises(SystemExit, match=sentence):
            main(arguments)


def test_arms_are_compared_image_by_image(runs, toy, tmp_path, capsys):
    out = tmp_path / "out"
    filtering_tool.main([*map(str, (runs["none"], runs["bundled"])), "--out", str(out), "--masks", str(toy)])
    printed = capsys.readouterr().out
    result = json.loads((out / filtering_tool.FILE).read_text())
    assert list(result["arms"]) == ["none", "bundled"]
    assert result["images"] == 20
    assert {p.name for p in out.glob("*.png")} == {"iou.png", "iou_upper_bound.png", "auroc.png", "depth.png"}
    host, layer = (
        next(f for f in result["arms"][arm] if (f["name"], f["kind"], f["tap"]) == (AUROC, "magnitude", tap))
        for arm, tap in (("none", "host"), ("bundled", "adapter_out"))
    )
    gap = next(
        f
        for f in result["differences"]
        if f["name"] == f"{AUROC}: bundled, adapter_out - none, host" and f["kind"] == "magnitude"
    )
    assert gap["value"] == pytest.approx(layer["value"] - host["value"], abs=1e-6)
    assert IOU in printed
    assert read_study(runs["none"]) is not None
    with pytest.raises(SystemExit, match="given twice"):
        filtering_tool.main([str(runs["none"])] * 2)


def test_images_whose_masks_are_broken_are_left_out_and_counted(runs, tmp_path):
    root = write_toy_imagenet_s(tmp_path / "toy", views=1, limit=2)
    next((root / "validation-segmentation").glob("*/*.png")).unlink()
    found = study(runs["none"], masks=root, samples=0, on_error="skip")
    assert any("1 of 10 images were left out" in note for note in found.notes)
    assert {f.samples for f in found.findings if f.tap == "host"} == {9}
    with pytest.raises(ValueError, match="has no mask"):
        study(runs["none"], masks=root)
