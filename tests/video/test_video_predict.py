"""The predict command: classes, probabilities, labels and heat maps, from runs and official checkpoints."""

from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from videomae_reference import CLASSES, FRAMES, LLM_HEADS, SIDE, classifier_state, write

from frozenllm.core.analysis import magnitude, tapped
from frozenllm.core.training import compose_config, train
from frozenllm.video import predict
from frozenllm.video.data import read_video
from frozenllm.video.heatmap import overlay, spread, token_activations
from frozenllm.video.predictor import load_predictor
from frozenllm.video.train import CONFIG

OFFICIAL = ["--llm-heads", str(LLM_HEADS), "--image-size", str(SIDE), "--num-frames", str(FRAMES)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, toy_frames_root: Path) -> dict[str, Path]:
    """Checkpoints of two short runs."""
    folder = tmp_path_factory.mktemp("runs")
    files = {}
    threads = torch.get_num_threads()
    for arm in ("none", "bundled"):
        overrides = [f"llm={arm}", f"data.root={toy_frames_root}", "+data.toy.train_videos=24"]
        overrides += [
            "+data.toy.val_videos=8",
            f"runs={folder}",
            "data.batch_size=4",
            "runtime.stop_after=2",
            "runtime.console=false",
        ]
        result = train(compose_config(CONFIG, [*overrides, "optim.lr=0.01"]))
        files[arm] = Path(result.run_dir) / "checkpoints" / "last.pt"
    torch.set_num_threads(threads)
    return files


@pytest.fixture(scope="module")
def video(toy_videos_root: Path) -> Path:
    return sorted((toy_videos_root / "videos").glob("*.mp4"))[0]


@pytest.fixture
def official(tmp_path: Path) -> Path:
    return write(tmp_path / "official.pth", classifier_state(llm=True))


def printed(text: str) -> list[tuple[float, str]]:
    return [(float(m[1]), m[2]) for m in re.finditer(r"^ *([\d.]+) %  (.+)$", text, flags=re.MULTILINE)]


def test_official_checkpoint(official: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Top-5 and probabilities are those of the model on the clip that the official test would see."""
    names = [f"doing {i}" for i in range(CLASSES)]
    (tmp_path / "labels.txt").write_text("\n".join(names) + "\n")
    predict.main([str(video), "--checkpoint", str(official), "--labels", str(tmp_path / "labels.txt"), *OFFICIAL])
    rows = printed(capsys.readouterr().out)
    predictor = load_predictor(official, official={"llm_heads": LLM_HEADS, "image_size": SIDE, "num_frames": FRAMES})
    frames = read_video(video, lambda n: (n / FRAMES * (np.arange(FRAMES) + 0.5)).astype(int), "pyav")
    clip = torch.nn.functional.interpolate(frames.float(), SIDE, mode="bilinear").round() / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    clip = (clip - mean) / std
    with torch.no_grad():
        wanted = predictor.model(clip[None]).softmax(1)[0]
    values, order = wanted.topk(5)
    assert [name for _, name in rows] == [names[i] for i in order.tolist()]
    np.testing.assert_allclose([value for value, _ in rows], 100 * values, atol=0.5)  # resized in uint8, and rounded


@pytest.mark.parametrize("arm", ["none", "bundled"])
def test_run_checkpoint_with_views_and_heat_map(
    arm: str, runs: dict[str, Path], video: Path, toy_videos_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out.mp4"
    labels = toy_videos_root / "labels.json"
    arguments = [str(video), "--checkpoint", str(runs[arm]), "--labels", str(labels), "--views", "2x3"]
    predict.main([*arguments, "--out", str(out)])
    text = capsys.readouterr().out
    rows = printed(text)
    assert {name for _, name in rows} == set(json.loads(labels.read_text()))
    assert sum(value for value, _ in rows) == pytest.approx(100, abs=0.03)
    assert rows == sorted(rows, reverse=True)
    assert f"wrote {out}" in text
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (224, 224, 12.0)
        assert sum(1 for _ in container.decode(video=0)) == 16


def test_views_are_averaged(runs: dict[str, Path], video: Path) -> None:
    predictor = load_predictor(runs["bundled"])
    both = predictor.probabilities(video, temporal=2)
    with torch.no_grad():
        clips = [
            predictor.transform(read_video(video, lambda n, t=t: predictor.sampling.view(n, t, 2), "pyav"))
            for t in range(2)
        ]
        parts = [predictor.model(clip[None]).softmax(1)[0] for clip in clips]
    assert (parts[0] - parts[1]).abs().max() > 1e-4
    torch.testing.assert_close(both, (parts[0] + parts[1]) / 2)


def test_activations_are_those_of_the_layers_output(runs: dict[str, Path]) -> None:
    clip = torch.randn(8, 3, 32, 32)
    with_layer, alone = (load_predictor(runs[arm]).model for arm in ("bundled", "none"))
    with torch.no_grad(), tapped(with_layer) as taps:
        with_layer(clip[None])
    found = token_activations(with_layer, clip)
    assert found.shape == (4, 2, 2)
    torch.testing.assert_close(found.flatten(), magnitude(taps["adapter_out"])[0])
    with torch.no_grad():
        torch.testing.assert_close(token_activations(alone, clip).flatten(), magnitude(alone.tokens(clip[None]))[0])
    assert not torch.equal(token_activations(with_layer, clip, "frequency"), found)


def test_heat_maps_follow_time_and_space() -> None:
    maps = torch.zeros(2, 2, 2)
    maps[0, 0, 1] = maps[1, 1, 0] = 1.0  # first above right, then below left
    images = spread(maps, np.array([0, 2, 8, 10]), np.arange(12), (8, 8))
    assert images.shape == (12, 8, 8)
    assert images[0, 0, 7] == images[1, 0, 7] == 1.0  # until the first tubelet's middle, at frame 1
    assert images[9, 7, 0] == images[11, 7, 0] == 1.0
    assert images[5, 0, 7] == images[5, 7, 0] == pytest.approx(0.5)
    painted = overlay(torch.zeros(12, 3, 8, 8, dtype=torch.uint8), images)
    assert painted.shape == (12, 224, 224, 3)
    assert painted[0, 0, 223].sum() > 200 > painted[0, 223, 0].sum() + 100
    # Of a video with fewer frames than the clip, several tubelets show one frame.
    short = spread(
        torch.tensor([0.0, 0.4, 0.6, 1.0])[:, None, None], np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.arange(2), (1, 1)
    )
    torch.testing.assert_close(short.flatten(), torch.tensor([0.2, 0.8]))
    odd = overlay(torch.zeros(1, 3, 225, 301, dtype=torch.uint8), torch.zeros(1, 225, 301))
    assert odd.shape == (1, 224, 300, 3)


@pytest.mark.parametrize(("name", "content"), [
    ("a.txt", "x\ny\n\nz\n"), ("b.json", '["x", "y", "z"]'), ("c.json", '{"z": "2", "x": "0", "y": "1"}'),
    ("d.json", '{"2": "z", "0": "x", "1": "y"}'),
])  # fmt: skip
def test_forms_of_labels(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert predict.read_labels(tmp_path / name, 3) == ["x", "y", "z"]
    with pytest.raises(ValueError, match=f"{name}: has 3 classes, and the checkpoint's model 4"):
        predict.read_labels(tmp_path / name, 4)


def test_mistakes_give_one_sentence(
    runs: dict[str, Path], official: Path, video: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "gap.json").write_text('{"a": "0", "b": "2"}')
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "torn.pt").write_bytes(runs["none"].read_bytes()[:3000])
    run, clip = ["--checkpoint", str(runs["none"])], str(video)
    for arguments, words in (
        ([clip, "--checkpoint", "none.pt"], "There is no checkpoint at none.pt"),
        ([clip, "--checkpoint", str(tmp_path / "torn.pt")], "torn.pt cannot be read as a checkpoint"),
        ([str(tmp_path / "empty.mp4"), *run], "empty.mp4 is empty"),
        ([str(tmp_path / "no.mp4"), *run], "no video file at"),
        ([clip, *run, "--labels", str(tmp_path / "gap.json")], "numbers of its classes must be 0 to 1"),
        ([clip, *run, "--labels", str(tmp_path / "bad.json")], "not valid JSON"),
        ([clip, *run, "--labels", str(tmp_path / "none.json")], "none.json: cannot be read"),
        ([clip, *run, "--labels", clip], "is no text file"),
        ([clip, *run, "--top", "0"], "--top must be 1 or more"),
        ([clip, *run, "--views", "3"], "two numbers such as 2x3"),
        ([clip, *run, "--out", str(tmp_path / "out.gif")], "must end in"),
        ([clip, *run, "--out", str(tmp_path / "no" / "out.mp4")], "cannot be written"),
        ([clip, *run, "--llm-heads", "3"], "leave out llm_heads"),
        ([clip, "--checkpoint", str(official), *OFFICIAL, "llm.path=x"], "leave out llm.path=x"),
    ):
        with pytest.raises(SystemExit) as stopped:
            predict.main(arguments)
        assert words in str(stopped.value), arguments
        assert str(stopped.value).startswith("error: ")
        assert "\n" not in str(stopped.value)
    capsys.readouterr()
