"""METER's parts against transformers, its options, and its real sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionModel, RobertaModel

from frozenllm.core.analysis import tapped
from frozenllm.vqa.answers import AnswerSpace
from frozenllm.vqa.meter import MeterRetrieval, MeterVQA, build_trunk, build_vqa
from frozenllm.vqa.meter.encoders import ImageEncoder, TextEncoder, resample_positions

SPEC = {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 48}
LLM = {"kind": "random", "spec": SPEC}
IDS = torch.tensor([[0, 7, 9, 2, 1], [0, 5, 6, 8, 2]])
MASK = IDS != 1


@pytest.fixture
def sizes(encoders: Path) -> dict[str, Any]:
    return {
        "image_encoder": f"{encoders}/clip",
        "text_encoder": f"{encoders}/roberta",
        "width": 32,
        "heads": 2,
        "layers": 1,
        "init_std": 0.2,
    }


def images(size: int = 48, number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_encoders_are_transformers(encoders: Path) -> None:
    clip = CLIPVisionModel.from_pretrained(encoders / "clip").eval()
    states = clip(images(), output_hidden_states=True).hidden_states
    norm = getattr(clip, "vision_model", clip).post_layernorm
    encoder = ImageEncoder(str(encoders / "clip")).eval()
    torch.testing.assert_close(encoder(images()), norm(states[-2]))  # without the last layer, all tokens normalised
    whole = ImageEncoder(str(encoders / "clip"), drop_layers=0).eval()
    torch.testing.assert_close(whole(images()), norm(states[-1]))
    roberta = RobertaModel.from_pretrained(encoders / "roberta", add_pooling_layer=False).eval()
    wanted = roberta(input_ids=IDS, attention_mask=MASK.long()).last_hidden_state
    found = TextEncoder(str(encoders / "roberta")).eval()(IDS, MASK)
    torch.testing.assert_close(found[MASK], wanted[MASK])


@torch.no_grad()
def test_other_resolutions(encoders: Path) -> None:
    encoder = ImageEncoder(str(encoders / "clip"), image_size=80).eval()
    assert encoder(images(80)).shape == (2, 1 + 25, 32)
    clip = CLIPVisionModel.from_pretrained(encoders / "clip").eval()
    wanted = getattr(clip, "vision_model", clip).embeddings(images(80), interpolate_pos_encoding=True)
    torch.testing.assert_close(encoder.embeddings(images(80)), wanted)
    weight = torch.randn(1 + 9, 4)
    assert torch.equal(resample_positions(weight, 3), weight)
    assert torch.equal(resample_positions(weight, 5)[0], weight[0])
    with pytest.raises(ValueError, match="multiple of the 16 pixels"):
        ImageEncoder(str(encoders / "clip"), image_size=50)
    with pytest.raises(ValueError, match="do not make a square"):
        resample_positions(torch.zeros(8, 4), 3)


@pytest.mark.parametrize(
    ("insert", "places"), [("visual", ["visual"]), ("text", ["text"]), ("both", ["visual", "text"])]
)
@torch.no_grad()
def test_insert(sizes: dict[str, Any], insert: str, places: list[str]) -> None:
    model = MeterVQA(build_trunk(**sizes, llm=LLM, insert=insert), ["a", "b"]).eval()
    assert list(model.trunk.llm) == places
    with tapped(model) as taps:
        model(images(), IDS, MASK)
    host = taps.layers[f"trunk.llm.{places[0]}"]["host"]
    if places[0] == "visual":
        torch.testing.assert_close(host, model.tokens(images(), IDS, MASK))
        assert host.shape == (2, 10, 32)
    else:
        assert torch.equal(taps.layers["trunk.llm.text"]["mask"], MASK)


@torch.no_grad()
def test_only_the_pooled_token_is_asked_for(sizes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trunk = build_trunk(**sizes, llm=LLM).eval()
    fast = trunk(images(), IDS, MASK)
    layer, asked = trunk.llm["visual"], []
    plain = layer.forward

    def whole(tokens: torch.Tensor, mask: Any = None, readout: Any = None) -> torch.Tensor:
        asked.append(readout)
        return plain(tokens, mask)

    monkeypatch.setattr(layer, "forward", whole)
    torch.testing.assert_close(trunk(images(), IDS, MASK), fast)
    assert asked == [slice(0, 1)]


@torch.no_grad()
def test_hosts_start_equal_and_blindness(sizes: dict[str, Any]) -> None:
    models = []
    for llm in (None, LLM):
        torch.manual_seed(5)
        models.append(build_trunk(**sizes, llm=llm))
    host, layered = (dict(model.named_parameters()) for model in models)
    assert all(torch.equal(tensor, layered[name]) for name, tensor in host.items())
    assert {name.split(".")[0] for name in layered.keys() - host.keys()} == {"llm"}
    blind = build_trunk(**sizes, blind=True).eval()
    assert torch.equal(blind(images(), IDS, MASK), blind(images() + 1, IDS, MASK))


@torch.no_grad()
def test_retrieval_scores(sizes: dict[str, Any]) -> None:
    """All pairs in chunks, own texts, and single pairs are the same scores."""
    model = MeterRetrieval(build_trunk(**sizes, llm=LLM), pair_chunk=2).eval()
    gallery = model(images(), gallery_ids=IDS, gallery_mask=MASK)["rank"]
    own = model(images(), IDS.expand(2, -1, -1), MASK.expand(2, -1, -1), match_with=torch.tensor([1, 0]))
    torch.testing.assert_close(own["rank"], gallery)
    for i in range(2):
        for j in range(2):
            pooled = model.trunk(images()[i : i + 1], IDS[j : j + 1, : MASK[j].sum()], MASK[j : j + 1, : MASK[j].sum()])
            torch.testing.assert_close(model.rank(pooled)[0, 0], gallery[i, j])
    swapped = model.match(model.trunk(images().flip(0), IDS[:1].expand(2, -1), MASK[:1].expand(2, -1)))
    torch.testing.assert_close(own["match"], swapped)  # the first text with the other image
    assert torch.equal(model.rank.weight[0], model.match.weight[1])
    assert not any(p.requires_grad for p in MeterRetrieval(build_trunk(**sizes), freeze_match=True).match.parameters())
    with pytest.raises(ValueError, match="Give texts"):
        model(images())


def test_meters_real_sizes() -> None:
    """CLIP ViT-B/32 and RoBERTa-base, on the meta device: parameters counted from the description."""
    roberta = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
    with torch.device("meta"):
        model = build_vqa(answers=3129, image_encoder={"patch_size": 32}, text_encoder=roberta)
    d, ffn = 768, 3072
    norm, square = 2 * d, d * d + d
    block = 4 * square + 2 * norm + (d * ffn + ffn) + (ffn * d + d)
    clip = d + 3 * 32 * 32 * d + 50 * d + 2 * norm + 11 * block
    text = (50265 + 514 + 1) * d + norm + 12 * block
    fusion = 12 * (block + 4 * square + norm)  # one more attention than a plain block
    rest = 2 * square + 2 * d + 2 * square
    head = (1536 * 1536 + 1536) + 2 * 1536 + (1536 * 3129 + 3129)
    assert sum(p.numel() for p in model.parameters()) == clip + text + fusion + rest + head
    assert len(model.trunk.fusion.text_layers) == len(model.trunk.fusion.image_layers) == 6
    assert model.trunk.fusion.text_layers[0].self_attn.num_heads == 12


@pytest.mark.parametrize(("change", "words"), [
    ({"insert": "image"}, "insert must be"), ({"heads": 5}, "heads that divide"), ({"colour": 1}, "no option 'colour'"),
    ({"drop_layers": 2}, "drop_layers must leave"), ({"image_encoder": "/no/such"}, "/no/such does not exist"),
    ({"text_encoder": "./no_such"}, "no_such does not exist"),
])  # fmt: skip
def test_wrong_options_give_one_sentence(sizes: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        build_trunk(**{**sizes, **change})
    assert "\n" not in str(caught.value)


def test_damaged_encoders_and_wrong_images(sizes: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read from"):
        build_trunk(**{**sizes, "text_encoder": str(tmp_path)})
    with pytest.raises(ValueError, match=r"\(batch, 3, 48, 48\)"):
        build_trunk(**sizes)(images(32), IDS, MASK)


def test_answer_space_travels_with_the_state() -> None:
    space: nn.Module = AnswerSpace(["yes", "no"])
    AnswerSpace(["yes", "no"]).load_state_dict(space.state_dict())
    for other in (["no", "yes"], ["yes", "red"]):
        with pytest.raises(ValueError, match="another answer vocabulary"):
            AnswerSpace(other).load_state_dict(space.state_dict())
    for wrong in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="none twice"):
            AnswerSpace(wrong)
