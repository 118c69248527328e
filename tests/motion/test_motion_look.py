"""Pictures, films and activations, from a trained model on toy data."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from frozenllm.core.film import write_film
from frozenllm.core.training import compose_config, train
from frozenllm.motion import look
from frozenllm.motion.data import argoverse2
from frozenllm.motion.models import MMTransformer, MotionHost, VectorNet
from frozenllm.motion.pictures import ScenePicture, activations
from frozenllm.motion.testing import random_inputs
from frozenllm.motion.train import CONFIG

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
LLM = {"kind": "random", "spec": SPEC, "seed": 3}
SIZES = {VectorNet: {"dim": 24, "width": 16, "hidden": 16}}
SIZES[MMTransformer] = {"dim": 16, "hidden": 24, "width": 8, "layers": 1, "position_dim": 8}
HOSTS = [(kind, insert) for kind in SIZES for insert in ("before_decoder", "after_subgraph")]


def build(kind: type[MotionHost], insert: str, llm: object = LLM) -> MotionHost:
    torch.manual_seed(0)
    return kind(12, 3, insert=insert, llm=llm, **SIZES[kind]).eval()


def by_definition(tokens: Tensor, mask: Tensor) -> Tensor:
    """Paper, A.3, one sample at a time: distance from the mean token, scaled to 0 to 1; 0 for padding."""
    result = torch.zeros(mask.shape)
    for row, (own, known) in enumerate(zip(tokens, mask, strict=True)):
        distance = (own[known] - own[known].mean(dim=0)).norm(dim=-1)
        result[row, known] = (distance - distance.min()) / (distance.max() - distance.min())
    return result


@pytest.mark.parametrize(("kind", "insert"), HOSTS)
@pytest.mark.parametrize("llm", [LLM, None], ids=["layer", "alone"])
def test_activation_of_every_polyline(kind: type[MotionHost], insert: str, llm: object) -> None:
    model, inputs, seen = build(kind, insert, llm), random_inputs(3, 4, 5, history=6, points=4), {}
    agents, lanes = inputs["agents_valid"].any(-1), inputs["lanes_valid"].any(-1)
    per_agent = 3 if (kind, insert) == (MMTransformer, "after_subgraph") else 1
    mask = torch.cat([agents.repeat_interleave(per_agent, dim=1), lanes], dim=1)
    with torch.no_grad():
        if llm is None:
            tokens = model.tokens(**inputs)
        else:
            model.llm.register_forward_pre_hook(lambda module, args: seen.update(tokens=args[0]))
            model(**inputs)
            tokens = model.llm(seen["tokens"], mask)
    wanted = by_definition(tokens, mask)
    wanted = torch.cat([wanted[:, : 4 * per_agent].unflatten(1, (4, -1)).mean(-1), wanted[:, 4 * per_agent :]], dim=1)
    found = activations(model, inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert found.shape == (3, 9)
    assert not found[~torch.cat([agents, lanes], dim=1)].any()
    other = activations(model, inputs, "frequency")
    assert other.shape == found.shape
    assert not torch.allclose(found, other, atol=1e-2)


def test_attention_is_the_targets() -> None:
    """Against scores and softmax written out: summed over heads, scaled to 0 to 1; padding gets nothing."""
    model, inputs = build(VectorNet, "before_decoder"), random_inputs(3, 4, 5, history=6, points=4)
    found = activations(model, inputs, "attention")
    mask = torch.cat([inputs["agents_valid"].any(-1), inputs["lanes_valid"].any(-1)], dim=1)
    assert not found[~mask].any()
    assert found.max(dim=1).values.tolist() == [1.0] * 3
    with torch.no_grad():
        tokens = model.tokens(**inputs)
        layer = model.llm.block.decoder_layers[0]
        normed = layer.attention_input(model.llm.adapter_in(tokens))
        query = layer.split_heads(layer.project(normed, "q"))[:, :, 0]
        keys = layer.split_heads(layer.project(normed, "k")).repeat_interleave(2, dim=1)
        scores = torch.einsum("bhd,bhnd->bhn", query, keys) * 12**-0.5
        paid = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1).sum(dim=1)
    low = paid.masked_fill(~mask, torch.inf).min(dim=1, keepdim=True).values
    wanted = ((paid - low) / (paid.max(dim=1, keepdim=True).values - low)).masked_fill(~mask, 0.0)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_a_host_without_a_layer_has_no_attention() -> None:
    with pytest.raises(ValueError, match="no attention to look at"):
        activations(build(VectorNet, "before_decoder", None), random_inputs(1), "attention")
    with pytest.raises(ValueError, match="magnitude, frequency, attention"):
        activations(build(VectorNet, "before_decoder"), random_inputs(1), "colour")


def picture(toy2: Path, activation: bool = True) -> tuple[ScenePicture, dict[str, Tensor]]:
    sample = argoverse2(toy2, "val", radius=60.0, horizon=6)[0]
    ahead = torch.arange(1, 7.0)[:, None] * torch.tensor([[3.0, 0.0]])
    modes = torch.stack([ahead, ahead.flip(-1), -ahead.flip(-1)])
    prediction = {"trajectories": modes, "probabilities": torch.tensor([0.6, 0.3, 0.1]), **sample["targets"]}
    count = len(sample["inputs"]["agents"]) + len(sample["inputs"]["lanes"])
    values = torch.linspace(0, 1, count) if activation else None
    return ScenePicture(sample["inputs"], prediction, values, title="a scene"), sample


def test_picture_shows_map_prediction_and_truth(toy2: Path, tmp_path: Path) -> None:
    drawn, sample = picture(toy2)
    drawn.save(tmp_path / "scene.png")
    lanes, *_ = drawn.axes.collections
    assert len(lanes.get_segments()) == int(sample["inputs"]["lanes_valid"].any(-1).sum())
    first = sample["inputs"]["lanes"][0][sample["inputs"]["lanes_valid"][0]]
    np.testing.assert_allclose(lanes.get_segments()[0][:-1], first[:, :2])
    np.testing.assert_allclose(lanes.get_segments()[0][-1], first[-1, :2] + first[-1, 2:])
    texts = [text.get_text() for text in drawn.axes.texts]
    assert texts == ["0.60", "0.30", "0.10"]
    ends = [line.get_xydata()[-1].tolist() for line in drawn.axes.lines]
    assert [18.0, 0.0] in ends
    with Image.open(tmp_path / "scene.png") as image:
        assert image.width == 640
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    for wanted in ((29, 78, 216), (194, 65, 12), (21, 128, 61)):  # target, prediction, truth
        assert wanted in colours


def test_a_film_shows_the_scene_step_by_step(toy2: Path, tmp_path: Path) -> None:
    drawn, _ = picture(toy2, activation=False)
    count = drawn.save_film(tmp_path / "scene.mp4", fps=10)
    assert count == 50 + 6 + 5 + 10  # history, horizon, and the rests
    with av.open(str(tmp_path / "scene.mp4")) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert float(film.streams.video[0].average_rate) == 10
    assert len(frames) == count
    orange = [((frame - np.array([194, 65, 12])).astype(float).__abs__().max(axis=-1) < 40).sum() for frame in frames]
    legend = max(orange[:49])  # the colour's line there
    assert orange[-1] > 3 * legend
    assert np.abs(frames[10].astype(float) - frames[48]).max() > 60  # the target has moved on


def test_film_frames_equal_whole_drawings(toy2: Path) -> None:
    """The map is drawn once for all pictures of a film; the result is what drawing everything gives."""
    drawn, _ = picture(toy2)
    *_, last = drawn.frames(fps=1)
    drawn.draw()
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="raw")
    whole = np.frombuffer(buffer.getvalue(), np.uint8).reshape(*last.shape[:2], 4)[..., :3]
    assert (np.abs(whole.astype(int) - last.astype(int)).max(axis=-1) > 8).mean() < 0.01


def test_odd_sizes_are_cut_and_empty_films_refused(tmp_path: Path) -> None:
    frames = [np.full((33, 47, 3), 9 * i, np.uint8) for i in range(5)]
    assert write_film(frames, tmp_path / "odd.mp4") == 5
    with av.open(str(tmp_path / "odd.mp4")) as film:
        assert (film.streams.video[0].width, film.streams.video[0].height) == (46, 32)
    with pytest.raises(ValueError, match="no picture"):
        write_film([], tmp_path / "none.mp4")


@pytest.fixture(scope="module")
def run(toy2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step."""
    options = ["recipe=traffic", f"data.root={toy2}", "data.toy={train: 12, val: 6, test: 3, seed: 0}", "name=it"]
    options += ["model.dim=16", "model.width=8", "model.hidden=16", "data.batch_size=4", "runtime.console=false"]
    options += ["runtime.stop_after=1", f"runs={tmp_path_factory.mktemp('runs')}"]
    return Path(train(compose_config(CONFIG, options)).run_dir)


def test_look_writes_pictures_and_films(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    look.main([str(run), "--count", "2", "--no-film", "--out", str(tmp_path)])
    files = sorted(path.name for path in tmp_path.iterdir())
    assert [name.rpartition(".")[2] for name in files] == ["png", "png"]
    assert f"wrote 2 files to {tmp_path}" in capsys.readouterr().out
    scenario = files[1].removesuffix(".png").partition("_")[2]
    look.main([str(run), "--scenario", scenario, "--activation", "attention"])
    written = sorted((run / "looks").iterdir())
    assert [path.name for path in written] == [f"00001_{scenario}.mp4", f"00001_{scenario}.png"]
    with av.open(str(written[0])) as film:
        assert sum(1 for _ in film.decode(video=0)) == 110 + 15


@pytest.mark.parametrize(("arguments", "words"), [
    (["--scenario", "nobody"], "has no scenario nobody"),
    (["--split", "nothing"], "splits"),
    (["--count", "0"], "must be 1 or more"),
])  # fmt: skip
def test_what_is_wrong_is_said_in_one_sentence(run: Path, arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        look.main([str(run), *arguments])
    assert words in str(stopped.value)
    assert "\n" not in str(stopped.value)
