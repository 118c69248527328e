"""SQA3D's host: sizes, masks, what blind models see, the detector's losses, texts, and what a state dict carries."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from frozenllm.core.testing import TINY_LLM
from frozenllm.vqa.scenes.build import build_sqa3d
from frozenllm.vqa.scenes.model import SituatedQA
from frozenllm.vqa.scenes.text import WordEncoder
from frozenllm.vqa.scenes.votenet import SceneDetector, votenet_config
from frozenllm.vqa.testing import TINY_SQA3D

LLM = {**TINY_LLM, "adapter_init": "default"}
POINTS = torch.randn(2, 64, 7, generator=torch.Generator().manual_seed(0))
needs_scenes = pytest.mark.usefixtures("scenes_extra")
SITUATION, QUESTION = ["I look at the red wall.", "The wall is left."], ["What is left?", "Is the wall red?"]


def build(**options: Any) -> SituatedQA:
    torch.manual_seed(0)
    return build_sqa3d(**{**TINY_SQA3D, **options}).eval()


def score_objects(model: SituatedQA, wanted: Tensor) -> None:
    """Make the detector say which proposals (K,) are objects."""
    head = model.detector.bbox_head
    plain = type(head).forward

    def forward(features: Any) -> Any:
        found = plain(head, features)
        found["obj_scores"] = torch.where(wanted[None, :, None], torch.tensor([-3.0, 3.0]), torch.tensor([3.0, -3.0]))
        found["obj_scores"] = found["obj_scores"].expand(len(found["center"]), -1, -1)
        return found

    head.forward = forward


@needs_scenes
def test_outputs() -> None:
    out = build(llm=LLM)(POINTS, SITUATION, QUESTION)
    assert out["answers"].shape == (2, 4)
    assert out["pose"].shape == (2, 7)
    assert (out["tokens"].shape, out["mask"].shape) == ((2, 10, 24), (2, 10))
    assert out["detected"]["sem_scores"].shape == (2, 10, 2)


@needs_scenes
def test_hosts_with_and_without_the_layer_start_equal() -> None:
    alone, changed = build(), dict(build(llm=LLM).named_parameters())
    assert all(torch.equal(p, changed[name]) for name, p in alone.named_parameters())
    assert {name for name in changed if name.startswith("llm.")}


@needs_scenes
@pytest.mark.parametrize("llm", [None, LLM])
def test_proposals_without_an_object_do_not_leak(llm: Any) -> None:
    model = build(llm=llm)
    wanted = torch.arange(10) % 3 == 0
    score_objects(model, wanted)
    plain = model(POINTS, SITUATION, QUESTION)
    assert torch.equal(plain["mask"], wanted.expand(2, -1))
    tokens, other = model.object_map.forward, torch.randn(2, 10, 24)
    model.object_map.forward = lambda x: torch.where(wanted[None, :, None], tokens(x), other)
    changed = model(POINTS, SITUATION, QUESTION)
    assert not torch.equal(plain["tokens"][:, ~wanted], changed["tokens"][:, ~wanted])
    for name in ("answers", "pose"):
        torch.testing.assert_close(plain[name], changed[name], rtol=1e-5, atol=1e-6)


@needs_scenes
def test_a_scene_without_objects_reads_all_proposals() -> None:
    model = build(llm=LLM).train()
    score_objects(model, torch.zeros(10, dtype=torch.bool))
    out = model(POINTS, SITUATION, QUESTION)
    assert out["mask"].all()
    out["answers"].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@needs_scenes
def test_the_threshold_counts() -> None:
    scores = {"obj_scores": torch.tensor([[[0.0, 0.1], [0.0, -0.1], [0.0, 2.0]]])}
    detector = build().detector
    assert detector.counts(scores).tolist() == [[True, False, True]]  # the likelier class, as in SQA3D's code
    detector.threshold = 0.6
    assert detector.counts(scores).tolist() == [[False, False, True]]


@needs_scenes
def test_what_blind_models_do_not_see() -> None:
    others = (torch.randn(2, 64, 7), ["I look left.", "What is red?"], ["Is left red?", "What?"])
    for blind, seen in ((None, {0, 1, 2}), ("situation", {0, 2}), ("scene", {1, 2}), ("both", {2})):
        model = build(blind=blind)
        given = [POINTS, SITUATION, QUESTION]
        plain = model(*given)["answers"]
        for place in range(3):
            changed = [*given[:place], others[place], *given[place + 1 :]]
            assert torch.equal(model(*changed)["answers"], plain) == (place not in seen), (blind, place)
        assert (model.detector is None) == (blind in ("scene", "both"))


def test_texts() -> None:
    encoder = WordEncoder(["red", "wall"], 8, word_width=6, dropout=0.0).eval()
    tokens, mask = encoder(["The RED wall", "wall", ""])
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, False, False]]
    assert not tokens[1, 1:].any()
    alone, _ = encoder(["wall"])
    torch.testing.assert_close(tokens[1, :1], alone[0])
    unknown, _ = encoder(["unheard-of"])
    torch.testing.assert_close(tokens[2, 0], unknown[0, 0])


@needs_scenes
def test_transformer_reads_texts(encoders: Any) -> None:
    model = build(text={"kind": "transformer", "source": f"{encoders}/roberta"}, words=None)
    first = model(POINTS, ["What color is the circle?", "I"], QUESTION)["answers"]
    again = model(POINTS[1:], ["I"], QUESTION[1:])["answers"]  # padding changes nothing
    torch.testing.assert_close(first[1:], again, rtol=1e-4, atol=1e-5)


@needs_scenes
def test_state_dicts_carry_and_check_words_and_answers() -> None:
    model = build()
    state = model.state_dict()
    build().load_state_dict(state)
    words = [*TINY_SQA3D["words"][:-1], "other"]
    with pytest.raises((ValueError, RuntimeError), match="another word list"):
        build(words=words).load_state_dict(state)
    with pytest.raises((ValueError, RuntimeError), match="another answer vocabulary"):
        build(answers=["no", "yes", "red", "2"]).load_state_dict(state)


@needs_scenes
def test_detector_is_mmdet3ds_at_sqa3ds_sizes() -> None:
    config = votenet_config()
    backbone, head = config["backbone"], config["bbox_head"]
    assert list(backbone["num_points"]) == [2048, 1024, 512, 256]
    assert backbone["in_channels"] == 7
    assert head["vote_module_cfg"]["in_channels"] == 256
    assert head["vote_aggregation_cfg"]["num_point"] == 256
    assert head["vote_aggregation_cfg"]["mlp_channels"][-1] == 128
    assert (head["num_classes"], config["test_cfg"]["sample_mode"]) == (18, "vote")
    with torch.device("meta"):
        detector = SceneDetector()
    assert (detector.width, detector.num_classes) == (128, 18)


@needs_scenes
def test_losses_are_ten_times_sqa3ds_weighted_sum() -> None:
    """Votes, objectness, boxes and classes from their definitions; mmdet3d's weights have the factor of 10."""
    detector = build().detector.train()
    generator = torch.Generator().manual_seed(3)
    boxes = [torch.tensor([[0.0, 0, 0, 1, 1, 1], [1, 1, 0, 0.5, 0.6, 0.7]]), torch.tensor([[-1.0, 0, 0, 2, 1, 1]])]
    with torch.no_grad():  # so that some proposals are near a box
        boxes[0][:, :3] = detector(POINTS)["aggregated_points"][0, :2] + 0.1
    classes = [torch.tensor([1, 0]), torch.tensor([1])]
    instance = torch.randint(-1, 2, (2, 64), generator=generator)
    instance[1].clamp_(max=0)
    semantic = torch.stack([torch.where(i < 0, -1, c[i.clamp(min=0)]) for i, c in zip(instance, classes, strict=True)])
    found = detector(POINTS)
    losses = detector.losses(
        POINTS, found, {"boxes": boxes, "classes": classes, "semantic": semantic, "instance": instance}
    )
    votes, near, far, size, sem, clas = [], [], [], [], [], []
    for row in range(2):
        xyz, own = POINTS[row, :, :3], instance[row]
        for seed, vote in zip(found["seed_indices"][row].tolist(), found["vote_points"][row], strict=True):
            if own[seed] >= 0:
                of = xyz[own == own[seed]]
                votes.append((vote - (of.amin(0) + of.amax(0)) / 2).abs().sum())
        centres = boxes[row][:, :3]
        distance = torch.cdist(found["aggregated_points"][row], centres)
        closest = distance.argmin(1)
        for k in range(10):
            nearest = (distance[k, closest[k]].square() + 1e-6).sqrt()
            label = int(nearest < 0.3)
            if label or nearest > 0.6:
                weight = 0.8 if label else 0.2
                near.append(weight * F.cross_entropy(found["obj_scores"][row, k], torch.tensor(label)))
            if label:
                box, kind = boxes[row][closest[k]], classes[row][closest[k]]
                far.append((found["center"][row, k] - centres).square().sum(1).min())
                mean = torch.tensor(detector.bbox_head.bbox_coder.mean_sizes[kind])
                wanted = (box[3:] - mean) / mean
                size.append(F.smooth_l1_loss(found["size_res_norm"][row, k, kind], wanted))
                sem.append(F.cross_entropy(found["sem_scores"][row, k], kind))
                clas.append(F.cross_entropy(found["size_class"][row, k], kind))
    back = [(found["center"][row] - centre).square().sum(1).min() for row in range(2) for centre in boxes[row][:, :3]]

    def mean(values: list[Tensor]) -> Tensor:
        return torch.stack(values).mean() if values else torch.tensor(0.0)

    assert votes
    assert far, "no proposal is near a box: the case is empty"
    box = mean(far) + mean(back) + 0.1 * mean(clas) + mean(size)
    wanted = 10 * (mean(votes) + 0.5 * mean(near) + box + 0.1 * mean(sem))
    heading = losses.pop("dir_res_loss") + losses.pop("dir_class_loss")  # boxes have no heading
    assert heading >= 0
    torch.testing.assert_close(sum(losses.values()), wanted, rtol=1e-3, atol=1e-3)


@needs_scenes
def test_a_shifted_scene_gets_the_same_answers() -> None:
    """Without boxes, tokens know no absolute places: SQA3D's host answers alike wherever the scene's origin is."""
    points = (POINTS * 64).round() / 64  # so that shifted coordinates are exact
    moved = points.clone()
    moved[..., :3] += torch.tensor([4.0, -8.0, 2.0])
    alone = build(llm=LLM)
    first, second = alone(points, SITUATION, QUESTION), alone(moved, SITUATION, QUESTION)
    torch.testing.assert_close(first["answers"], second["answers"], rtol=1e-4, atol=1e-5)
    boxed = build(objects="both")
    assert not torch.allclose(
        boxed(points, SITUATION, QUESTION)["answers"], boxed(moved, SITUATION, QUESTION)["answers"], atol=1e-4
    )


@needs_scenes
@pytest.mark.parametrize(("options", "words"), [
    ({"blind": "ears"}, "model.blind must be"), ({"blind": "scene", "llm": "bundled"}, "use llm=none"),
    ({"text": {"kind": "gru"}}, "lstm or transformer"), ({"text": {"kind": "transformer"}}, "model.text.source"),
    ({"words": None}, "model.words"), ({"text": {"kind": "lstm", "size": 3}}, "no option 'size'"),
    ({"detector": {"backbone": {"seeds": 3}}}, r"no model\.detector\.backbone\.seeds"), ({"depth": 3}, "'depth'"),
    ({"threshold": 1.5}, "a probability below 1"),
    ({"objects": "names"}, "model.objects must be"), ({"heads": 5}, "heads that divide"),
])  # fmt: skip
def test_wrong_options_give_one_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "frozenllm.pointcloud", None)
    with pytest.raises(ImportError, match=r"pip install 'frozenllm-vqa\[scenes\]'"):
        build()
    build(blind="both")  # needs none of it
    monkeypatch.setitem(sys.modules, "mmdet3d", None)
    with pytest.raises(ImportError, match=r"mmdet3d is missing .* pip install 'frozenllm-vqa\[scenes\]'"):
        votenet_config()  # and does not install it


@needs_scenes
def test_points_of_another_width() -> None:
    with pytest.raises(ValueError, match=r"\(batch, points, 7\), not \(2, 64, 4\)"):
        build()(POINTS[..., :4], SITUATION, QUESTION)
