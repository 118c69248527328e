"""METER's released checkpoints, written here from the description of their layout, against METER's own formulation."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from frozenllm.vqa.meter import MeterRetrieval, MeterVQA, build_retrieval, build_trunk, build_vqa
from frozenllm.vqa.meter.encoders import resample_positions
from frozenllm.vqa.meter.released import load_released

WIDTH, HEADS, PATCH, GRID, WORDS, CLASSES = 16, 2, 8, 2, 20, 5
CLIP = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": HEADS,
        "image_size": PATCH * GRID, "patch_size": PATCH}  # fmt: skip
ROBERTA = {"vocab_size": WORDS, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 1,
           "num_attention_heads": HEADS, "max_position_embeddings": 16, "type_vocab_size": 1, "pad_token_id": 1,
           "layer_norm_eps": 1e-5}  # fmt: skip
SIZES = {"image_encoder": CLIP, "text_encoder": ROBERTA, "width": WIDTH, "heads": HEADS, "layers": 2}
LLM = {"kind": "random", "spec": {"hidden_size": 32, "num_heads": 2, "num_kv_heads": 2, "head_dim": 16,
                                  "intermediate_size": 48}}  # fmt: skip
State = dict[str, Tensor]


def released_state(head: str | None = "vqa") -> State:
    """Tensors as METER names and shapes them."""
    generator = torch.Generator().manual_seed(0)

    def w(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5)

    def linear(name: str, rows: int, columns: int) -> State:
        return {f"{name}.weight": w(rows, columns), f"{name}.bias": 0.1 * w(rows)}

    def norm(name: str, width: int = WIDTH) -> State:
        return {f"{name}.weight": 1 + 0.1 * w(width), f"{name}.bias": 0.1 * w(width)}

    visual = "vit_model.visual."
    state: State = {
        visual + "class_embedding": w(WIDTH),
        visual + "positional_embedding": w(GRID * GRID + 1, WIDTH),
        visual + "conv1.weight": w(WIDTH, 3, PATCH, PATCH) * 0.1,
        "vit_model.positional_embedding": w(7, WIDTH),  # CLIP's text side, which METER does not use
        "token_type_embeddings.weight": w(2, WIDTH),
        **norm(visual + "ln_pre"), **norm(visual + "ln_post"), **norm("vit_model.ln_final"),
    }  # fmt: skip
    for i in range(2):  # one fewer than CLIP has
        block = f"{visual}transformer.resblocks.{i}"
        state |= {f"{block}.attn.in_proj_weight": w(3 * WIDTH, WIDTH), f"{block}.attn.in_proj_bias": 0.1 * w(3 * WIDTH)}
        state |= linear(f"{block}.attn.out_proj", WIDTH, WIDTH) | norm(f"{block}.ln_1") | norm(f"{block}.ln_2")
        state |= linear(f"{block}.mlp.c_fc", 4 * WIDTH, WIDTH) | linear(f"{block}.mlp.c_proj", WIDTH, 4 * WIDTH)
    text = build_trunk(**SIZES).text_encoder.model.state_dict()  # transformers' names, as METER's
    state |= {
        f"text_transformer.{name}": w(*t.shape) if t.ndim > 1 else t + 0.1 * w(*t.shape) for name, t in text.items()
    }
    state |= linear("text_transformer.pooler.dense", WIDTH, WIDTH)
    state["text_transformer.embeddings.position_ids"] = torch.arange(16)[None]
    for side in ("image", "text"):
        state |= linear(f"cross_modal_{side}_transform", WIDTH, WIDTH)
        state |= linear(f"cross_modal_{side}_pooler.dense", WIDTH, WIDTH)
        for i in range(2):
            layer = f"cross_modal_{side}_layers.{i}"
            for attention in ("attention", "crossattention"):
                for part in ("query", "key", "value"):
                    state |= linear(f"{layer}.{attention}.self.{part}", WIDTH, WIDTH)
                state |= linear(f"{layer}.{attention}.output.dense", WIDTH, WIDTH)
                state |= norm(f"{layer}.{attention}.output.LayerNorm")
            state |= linear(f"{layer}.intermediate.dense", 4 * WIDTH, WIDTH)
            state |= linear(f"{layer}.output.dense", WIDTH, 4 * WIDTH) | norm(f"{layer}.output.LayerNorm")
    if head == "vqa":
        state |= linear("vqa_classifier.0", 2 * WIDTH, 2 * WIDTH) | norm("vqa_classifier.1", 2 * WIDTH)
        state |= linear("vqa_classifier.3", CLASSES, 2 * WIDTH)
    if head in ("itm", "irtr"):
        state |= linear("itm_score.fc", 2, 2 * WIDTH) | linear("mlm_score.decoder", WORDS, WIDTH)
    if head == "irtr":
        state |= linear("rank_output", 1, 2 * WIDTH)
    return state


def write(path: Path, state: State, **beside: Any) -> Path:
    """A Lightning checkpoint, with an object of Lightning's in it."""
    torch.save({"state_dict": state, "epoch": 9, "hyper_parameters": {"config": {"vit": "ViT-B/16"}}, **beside}, path)
    return path


def meters_forward(s: State, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """METER's pooled features, from its tensors, as its code describes them."""

    def lin(x: Tensor, name: str) -> Tensor:
        return F.linear(x, s[f"{name}.weight"], s[f"{name}.bias"])

    def norm(x: Tensor, name: str, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        scores = heads(q) @ heads(k).transpose(2, 3) / math.sqrt(WIDTH / HEADS)
        scores = scores.masked_fill(~keep[:, None, None], -math.inf)
        return (scores.softmax(-1) @ heads(v)).transpose(1, 2).flatten(2)

    def bert(x: Tensor, y: Tensor, keep: Tensor, name: str, eps: float) -> Tensor:
        q, k, v = lin(x, f"{name}.self.query"), lin(y, f"{name}.self.key"), lin(y, f"{name}.self.value")
        return norm(x + lin(attend(q, k, v, keep), f"{name}.output.dense"), f"{name}.output.LayerNorm", eps)

    def ffn(x: Tensor, name: str, eps: float) -> Tensor:
        inner = F.gelu(lin(x, f"{name}.intermediate.dense"))
        return norm(x + lin(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm", eps)

    visual = "vit_model.visual."
    image = F.conv2d(pixels, s[visual + "conv1.weight"], stride=PATCH).flatten(2).transpose(1, 2)
    image = torch.cat([s[visual + "class_embedding"].expand(len(image), 1, -1), image], 1)
    image = norm(image + s[visual + "positional_embedding"], visual + "ln_pre", 1e-5)
    every = torch.ones(image.shape[:2], dtype=torch.bool)
    for i in range(2):
        block = f"{visual}transformer.resblocks.{i}"
        qkv = F.linear(
            norm(image, f"{block}.ln_1", 1e-5), s[f"{block}.attn.in_proj_weight"], s[f"{block}.attn.in_proj_bias"]
        )
        image = image + lin(attend(*qkv.chunk(3, -1), every), f"{block}.attn.out_proj")
        inner = lin(norm(image, f"{block}.ln_2", 1e-5), f"{block}.mlp.c_fc")
        image = image + lin(inner * torch.sigmoid(1.702 * inner), f"{block}.mlp.c_proj")
    image = lin(norm(image, visual + "ln_post", 1e-5), "cross_modal_image_transform")

    e = "text_transformer.embeddings."
    places = torch.cumsum(mask.long(), 1) * mask + 1
    text = s[e + "word_embeddings.weight"][ids] + s[e + "position_embeddings.weight"][places]
    text = norm(text + s[e + "token_type_embeddings.weight"][0], e + "LayerNorm", 1e-5)
    name = "text_transformer.encoder.layer.0"
    text = ffn(bert(text, text, mask, f"{name}.attention", 1e-5), name, 1e-5)
    text = lin(text, "cross_modal_text_transform") + s["token_type_embeddings.weight"][0]
    image = image + s["token_type_embeddings.weight"][1]
    for i in range(2):
        t, v = f"cross_modal_text_layers.{i}", f"cross_modal_image_layers.{i}"
        new = bert(bert(text, text, mask, f"{t}.attention", 1e-12), image, every, f"{t}.crossattention", 1e-12)
        image = bert(bert(image, image, every, f"{v}.attention", 1e-12), text, mask, f"{v}.crossattention", 1e-12)
        text, image = ffn(new, t, 1e-12), ffn(image, v, 1e-12)
    pooled = [lin(x[:, 0], f"cross_modal_{side}_pooler.dense").tanh() for side, x in (("text", text), ("image", image))]
    return torch.cat(pooled, -1)


PIXELS = torch.randn(2, 3, PATCH * GRID, PATCH * GRID, generator=torch.Generator().manual_seed(2))
IDS = torch.tensor([[0, 7, 9, 2, 1], [0, 5, 6, 8, 2]])


@torch.no_grad()
def test_vqa_checkpoint_gives_meters_answers(tmp_path: Path) -> None:
    state = released_state("vqa")
    model = build_vqa(answers=CLASSES, released=str(write(tmp_path / "vqa.ckpt", state)), **SIZES).eval()
    pooled = meters_forward(state, PIXELS, IDS, IDS != 1)
    x = F.linear(pooled, state["vqa_classifier.0.weight"], state["vqa_classifier.0.bias"])
    x = F.gelu(F.layer_norm(x, x.shape[-1:], state["vqa_classifier.1.weight"], state["vqa_classifier.1.bias"]))
    wanted = F.linear(x, state["vqa_classifier.3.weight"], state["vqa_classifier.3.bias"])
    torch.testing.assert_close(model(PIXELS, IDS, IDS != 1), wanted, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_retrieval_checkpoints(tmp_path: Path) -> None:
    state = released_state("irtr")
    model = build_retrieval(released=str(write(tmp_path / "f30k.ckpt", state)), **SIZES).eval()
    pooled = meters_forward(state, PIXELS, IDS, IDS != 1)
    scores = model(PIXELS, IDS[:, None], (IDS != 1)[:, None], match_with=torch.arange(2))
    for name, head in (("rank", "rank_output"), ("match", "itm_score.fc")):
        wanted = F.linear(pooled, state[f"{head}.weight"], state[f"{head}.bias"])
        torch.testing.assert_close(scores[name], wanted, rtol=1e-4, atol=1e-5)
    pretrained = released_state("itm")  # no ranking head yet: it starts as the matching head's second row
    model = build_retrieval(released=str(write(tmp_path / "pretrain.ckpt", pretrained)), **SIZES)
    assert torch.equal(model.rank.weight[0], pretrained["itm_score.fc.weight"][1])


def test_what_is_kept(tmp_path: Path) -> None:
    """A pre-trained file has no answer head; the frozen layer starts on its own; another resolution is resampled."""
    path = write(tmp_path / "pretrain.ckpt", released_state("itm"))
    model = MeterVQA(build_trunk(**SIZES, llm=LLM, image_size=PATCH * 3), ["a", "b"])
    kept = load_released(model, path)
    assert {name.split(".")[0] for name in kept} == {"head", "trunk"}
    assert {name for name in kept if name.startswith("trunk")} == {
        "trunk.llm.visual.adapter_in.weight",
        "trunk.llm.visual.adapter_out.weight",
    }
    position = model.trunk.image_encoder.embeddings.position_embedding.weight
    assert torch.equal(position, resample_positions(released_state("itm")["vit_model.visual.positional_embedding"], 3))
    other = MeterVQA(build_trunk(**SIZES), ["a", "b"])
    kept = load_released(other, write(tmp_path / "vqa.ckpt", released_state("vqa")))
    assert kept == ["head.3.bias", "head.3.weight"]  # other answers than METER's


def test_lightning_objects_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks")

    class Checkpoint:
        def __reduce__(self) -> Any:
            return (Checkpoint, ("x",))

        def __init__(self, *args: Any) -> None:
            if args:
                raise AssertionError("Lightning's class was run.")

    Checkpoint.__module__, Checkpoint.__qualname__ = module.__name__, "Checkpoint"
    module.Checkpoint = Checkpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = write(tmp_path / "vqa.ckpt", released_state("vqa"), callbacks={Checkpoint: {"best": 1}, "it": Checkpoint()})
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    load_released(MeterVQA(build_trunk(**SIZES), [str(i) for i in range(CLASSES)]), path)


@pytest.mark.parametrize(("damage", "words"), [
    (lambda s: s.pop("cross_modal_text_transform.bias"), "missing trunk.text_map.bias"),
    (lambda s: s.pop("cross_modal_image_layers.1.attention.self.key.bias"), "lacks the key of"),
    (lambda s: s.update({"cross_modal_image_layers.7.output.dense.bias": torch.zeros(WIDTH)}), "unexpected"),
    (lambda s: s.update({"token_type_embeddings.weight": torch.zeros(3, WIDTH)}), "of another shape"),
    (lambda s: s.update({"vit_model.layers.0.x": torch.zeros(1)}), "Swin"),
    (lambda s: s.update({"surprise.weight": torch.zeros(1)}), r"holds surprise\.weight"),
])  # fmt: skip
def test_checkpoints_that_do_not_fit(tmp_path: Path, damage: Any, words: str) -> None:
    state = released_state("vqa")
    damage(state)
    model = MeterRetrieval(build_trunk(**SIZES))
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=words) as caught:
        load_released(model, write(tmp_path / "x.ckpt", state))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))  # nothing was changed


def test_files_that_are_not_read(tmp_path: Path) -> None:
    model = MeterRetrieval(build_trunk(**SIZES))
    path = write(tmp_path / "x.ckpt", released_state("vqa"), evil=print)
    with pytest.raises(ValueError, match="refused"):
        load_released(model, path)
    path.write_bytes(path.read_bytes()[:1000])
    for name, words in (("x.ckpt", "truncated"), ("y.ckpt", "does not exist")):
        with pytest.raises(ValueError, match=words):
            load_released(model, tmp_path / name)
    torch.save({"state_dict": {"fc.weight": torch.zeros(1)}}, tmp_path / "z.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint of METER"):
        load_released(model, tmp_path / "z.ckpt")
