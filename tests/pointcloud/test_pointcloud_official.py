"""Official checkpoints, written here from the description of their layout, against the official formulation."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from official_llama import attend, llama_forward, llama_state
from torch import Tensor

from frozenllm.core import llm_blocks, reload_blocks
from frozenllm.pointcloud import PointBERT, load_official_checkpoint, load_pretrained_host

WIDTH, LLM_WIDTH, LLM_HEADS, FFN = 128, 64, 4, 172
ENCODER, WIDTHS, POS, HEAD, DEPTH, CLASSES = 24, (16, 20, 28), 12, 18, 3, 15
GROUPS, SIZE = 5, 8
State = dict[str, Tensor]


def official_state(*, llm: bool = True, seed: int = 0) -> State:
    """Tensors as the official ``Point_BERT.py`` names and shapes them, with weights that let signals pass."""
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def weight(*shape: int) -> Tensor:
        fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
        return torch.randn(shape, generator=generator) * fan_in**-0.5

    def linear(name: str, rows: int, *columns: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = weight(rows, *columns), 0.1 * weight(rows)

    def norm(name: str, width: int, running: bool = False) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.2 * weight(width), 0.1 * weight(width)
        if running:
            state[f"{name}.running_mean"] = 0.2 * weight(width)
            state[f"{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)
            state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    first, local, second = WIDTHS
    linear("encoder.first_conv.0", first, 3, 1)
    norm("encoder.first_conv.1", first, running=True)
    linear("encoder.first_conv.3", local, first, 1)
    linear("encoder.second_conv.0", second, 2 * local, 1)
    norm("encoder.second_conv.1", second, running=True)
    linear("encoder.second_conv.3", ENCODER, second, 1)
    linear("reduce_dim", WIDTH, ENCODER)
    state["cls_token"], state["cls_pos"] = weight(1, 1, WIDTH) * 8, weight(1, 1, WIDTH) * 8
    linear("pos_embed.0", POS, 3)
    linear("pos_embed.2", WIDTH, POS)
    for i in range(DEPTH):
        block = f"blocks.blocks.{i}"
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        state[f"{block}.attn.qkv.weight"] = weight(3 * WIDTH, WIDTH)  # no bias there
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 4 * WIDTH, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 4 * WIDTH)
    norm("norm", WIDTH)
    linear("cls_head_finetune.0", HEAD, 2 * WIDTH)
    linear("cls_head_finetune.3", CLASSES, HEAD)
    if not llm:
        return state
    state |= llama_state(weight, WIDTH, LLM_WIDTH, FFN, layer=31)
    return state


def write(path: Path, state: State, prefix: str = "module.", **beside: Any) -> Path:
    """A checkpoint as the official ``tools/builder.py`` writes it."""
    content = {"base_model": {prefix + name: t for name, t in state.items()}, "epoch": 211, "metrics": {"acc": 83.0}}
    torch.save({**content, "best_metrics": {"acc": 83.4}, "optimizer": {"state": {}}, **beside}, path)
    return path


def official_forward(s: State, points: Tensor, num_groups: int = GROUPS, group_size: int = SIZE) -> Tensor:
    """The official model in eval mode, cloud by cloud and group by group, in the formulation of its description."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, s[f"{name}.weight"].flatten(1), s.get(f"{name}.bias"))

    def batch_norm(x: Tensor, name: str) -> Tensor:
        centred = (x - s[f"{name}.running_mean"]) / torch.sqrt(s[f"{name}.running_var"] + 1e-5)
        return centred * s[f"{name}.weight"] + s[f"{name}.bias"]

    def layer_norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), s[f"{name}.weight"], s[f"{name}.bias"], 1e-5)

    def encode(group: Tensor) -> Tensor:
        local = linear(
            F.relu(batch_norm(linear(group, "encoder.first_conv.0"), "encoder.first_conv.1")), "encoder.first_conv.3"
        )
        both = torch.cat([local.amax(0, keepdim=True).expand_as(local), local], dim=1)
        deep = F.relu(batch_norm(linear(both, "encoder.second_conv.0"), "encoder.second_conv.1"))
        return linear(deep, "encoder.second_conv.3").amax(0)

    tokens, positions = [], []
    for cloud in points:
        centers = [0]
        while len(centers) < num_groups:
            centers.append(int(torch.cdist(cloud, cloud[centers]).amin(1).argmax()))
        rows = [cloud[(cloud - cloud[c]).norm(dim=1).argsort()[:group_size]] - cloud[c] for c in centers]
        tokens.append(torch.stack([encode(row) for row in rows]))
        positions.append(linear(F.gelu(linear(cloud[centers], "pos_embed.0")), "pos_embed.2"))
    x, pos = linear(torch.stack(tokens), "reduce_dim"), torch.stack(positions)
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], dim=1)
    pos = torch.cat([s["cls_pos"].expand(len(x), -1, -1), pos], dim=1)
    for i in range(DEPTH):
        b = f"blocks.blocks.{i}"
        x = x + pos
        q, k, v = linear(layer_norm(x, f"{b}.norm1"), f"{b}.attn.qkv").chunk(3, dim=-1)
        x = x + linear(attend(q, k, v, WIDTH // 64), f"{b}.attn.proj")
        x = x + linear(F.gelu(linear(layer_norm(x, f"{b}.norm2"), f"{b}.mlp.fc1")), f"{b}.mlp.fc2")
    x = layer_norm(llama_forward(s, x, LLM_HEADS, layer=31), "norm")
    both = torch.cat([x[:, 0], x[:, 1:].amax(1)], dim=-1)
    return linear(F.relu(linear(both, "cls_head_finetune.0")), "cls_head_finetune.3")


@pytest.fixture
def points() -> Tensor:
    return torch.randn(4, 40, 3, generator=torch.Generator().manual_seed(7))


def load(path: Path, **options: Any) -> PointBERT:
    return load_official_checkpoint(
        path, **{"num_groups": GROUPS, "group_size": SIZE, "llm_heads": LLM_HEADS, **options}
    )


@pytest.mark.parametrize("llm", [True, False])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_equals_the_official_formulation(tmp_path: Path, points: Tensor, llm: bool, prefix: str) -> None:
    state = official_state(llm=llm)
    model = load(write(tmp_path / "best.pth", state, prefix))
    assert not model.training
    assert (model.llm is not None) == llm
    assert (model.num_classes, model.embed_dim, len(model.blocks)) == (CLASSES, WIDTH, DEPTH)
    with torch.no_grad():
        wanted = official_forward(state, points)
        assert wanted.std() > 0.1  # not drowned
        torch.testing.assert_close(model(points), wanted, atol=1e-5, rtol=1e-5)


def test_equals_the_official_formulation_where_tokens_are_small(tmp_path: Path, points: Tensor) -> None:
    """The epsilon of the blocks' norms tells there: torch's 1e-5, which the official code leaves as it is."""
    state = official_state(llm=False)
    for name in (
        "reduce_dim.weight",
        "reduce_dim.bias",
        "cls_token",
        "cls_pos",
        "pos_embed.2.weight",
        "pos_embed.2.bias",
    ):
        state[name] = 1e-3 * state[name]
    with torch.no_grad():
        found = load(write(tmp_path / "best.pth", state))(points)
        torch.testing.assert_close(found, official_forward(state, points), atol=1e-4, rtol=1e-4)


def test_groups_are_a_choice_of_the_caller(tmp_path: Path, points: Tensor) -> None:
    state = official_state()
    path = write(tmp_path / "best.pth", state)
    with torch.no_grad():
        found = load(path, num_groups=9, group_size=4)(points)
        # Scores reach 2: rounding in float32 comes close to 1e-5 by itself.
        torch.testing.assert_close(found, official_forward(state, points, 9, 4), atol=1e-5, rtol=1e-5)


def test_statistics_of_batch_norm_count(tmp_path: Path, points: Tensor) -> None:
    state = official_state()
    other = {name: t + 1.0 if name.endswith("running_mean") else t for name, t in state.items()}
    with torch.no_grad():
        a, b = (load(write(tmp_path / "a.pth", s))(points) for s in (state, other))
    assert (a - b).abs().max() > 1e-2


def test_the_block_is_frozen_and_can_be_read_again(tmp_path: Path, points: Tensor) -> None:
    model = load(write(tmp_path / "best.pth", official_state()))
    assert not [name for name, _ in model.named_parameters() if "block." in name and name.startswith("llm")]
    with torch.no_grad():
        wanted = model(points)
        state = model.state_dict()
        model.to("meta")
        restored = model.to_empty(device="cpu")
        restored.load_state_dict(state)
        reload_blocks(restored)
        torch.testing.assert_close(restored(points), wanted)
    assert next(llm_blocks(restored))[1].record.source.endswith("best.pth")


def pretraining(state: State) -> State:
    """Point-BERT's pre-training: the host twice (its momentum copy as well), the tokeniser, heads, a queue."""
    host = {name: t for name, t in state.items() if not name.startswith(("cls_head_finetune", "llama"))}
    return {
        **{f"transformer_q.{name}": t for name, t in host.items()},
        **{f"transformer_k.{name}": t + 1.0 for name, t in host.items() if t.is_floating_point()},
        "transformer_q.mask_token": torch.zeros(1, 1, WIDTH),
        "transformer_q.lm_head.weight": torch.zeros(8, WIDTH),
        "transformer_q.lm_head.bias": torch.zeros(8),
        "transformer_q.cls_head.0.weight": torch.zeros(8, WIDTH),
        "dvae.codebook": torch.zeros(4, 4),
        "queue": torch.zeros(8, 3),
    }


def test_pretraining_starts_a_host(tmp_path: Path, points: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    state = official_state()
    finetuned = load(write(tmp_path / "best.pth", state))
    model = load(write(tmp_path / "other.pth", official_state(seed=5)))
    head, adapter = model.head[3].weight.clone(), model.llm.adapter_in.weight.clone()
    with caplog.at_level(logging.INFO, "frozenllm"):
        kept = load_pretrained_host(model, write(tmp_path / "Point-BERT.pth", pretraining(state)))
    assert kept == sorted(["head.0.bias", "head.0.weight", "head.3.bias", "head.3.weight"]
                          + [f"llm.adapter_{side}.weight" for side in ("in", "out")])  # fmt: skip
    assert "llm.adapter_in.weight" in caplog.text
    assert torch.equal(model.head[3].weight, head)
    assert torch.equal(model.llm.adapter_in.weight, adapter)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().tokens(points), finetuned.tokens(points), atol=1e-6, rtol=0)


class _Danger:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must never run",))


def without(state: State, *names: str) -> State:
    return {name: t for name, t in state.items() if name not in names}


@pytest.mark.parametrize(("change", "words"), [
    (lambda s: without(s, "reduce_dim.weight"), "reduce_dim.weight is missing"),
    (lambda s: without(s, "blocks.blocks.1.mlp.fc1.bias"), "missing blocks.1.mlp.fc1.bias"),
    (lambda s: without(s, "encoder.first_conv.1.running_var"), "missing encoder.first_conv.1.running_var"),
    (lambda s: without(s, "llama_dim_mapper2.weight"), "no llama_dim_mapper2.weight"),
    (lambda s: {**s, "cls_head_finetune.9.weight": torch.zeros(2)}, "unexpected head.9.weight"),
    (lambda s: {**s, "cls_pos": torch.zeros(1, 1, 3)}, r"cls_pos \(1, 1, 3\) instead of \(1, 1, 128\)"),
    (lambda s: {**s, "reduce_dim.weight": torch.zeros(3)}, "should be 2-dimensional"),
    (lambda s: {f"transformer_q.{k}": t for k, t in s.items()}, "read it with load_pretrained_host"),
])  # fmt: skip
def test_other_files_are_refused_in_one_sentence(tmp_path: Path, change: Any, words: str) -> None:
    path = write(tmp_path / "odd.pth", change(official_state()))
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    assert "odd.pth" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_and_dangerous_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(tmp_path / "whole.pth", official_state())
    torn = tmp_path / "torn.pth"
    torn.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"torn\.pth: truncated"):
        load(torn)
    with pytest.raises(ValueError, match="could run code"):
        load(write(tmp_path / "danger.pth", official_state(), extra=_Danger()))
    assert "never run" not in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot be read"):
        load(tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="no tensor is named transformer_q"):
        load_pretrained_host(PointBERT(), path)
    with pytest.raises(ValueError, match="cannot have 3 heads"):
        load(path, num_heads=3)
