"""What the robustness command evaluates: checkpoints of runs, of the official release, and what timm reads."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from toy_imagenet import (
    CLEAN,
    CROPPED,
    SIZE,
    arguments,
    figures,
    official,
)

from frozenllm.vision2d.robustness import load_candidate, main


def test_weights_of_a_run(run: Path, model: torch.nn.Module) -> None:
    raw, average = load_candidate(str(run), weights="raw"), load_candidate(str(run), weights="ema")
    assert load_candidate(str(run)).identity["weights"] == "raw", "the recipe evaluates raw weights"
    assert raw.transform["input_size"] == SIZE
    assert raw.transform["crop_pct"] == 0.875
    assert torch.equal(raw.model.head.weight, model.head.weight)
    assert torch.equal(average.model.head.weight, model.head.weight.flip(0))
    half = load_candidate(str(run), precision="bf16")
    assert next(half.model.llm.block.buffers()).dtype == torch.bfloat16
    assert half.model.head.weight.dtype == torch.float32


def test_timm_checkpoints(tmp_path: Path, family: dict[str, Path]) -> None:
    """A file that timm reads: the model's own transform is used."""
    torch.manual_seed(0)
    path = tmp_path / "weights.safetensors"
    from safetensors.torch import save_file

    saved = timm.create_model("test_vit", num_classes=1000)
    save_file(saved.state_dict(), path)
    candidate = load_candidate(str(path), "test_vit")
    assert torch.equal(candidate.model.head.weight, saved.head.weight)
    assert candidate.transform["input_size"] == [3, 160, 160]
    assert not candidate.model.training
    out = tmp_path / "out"
    main(arguments(path, family, out, "timm_model=test_vit", "sets=[imagenet]"))
    assert figures(out)["model"]["kind"] == "timm"
    assert figures(out)["sets"]["imagenet"]["images"] == 7


def test_official_checkpoints(tmp_path: Path, family: dict[str, Path]) -> None:
    """A file of the release's layout, which holds an argparse.Namespace beside the weights."""
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 1000}
    host = timm.create_model("vit_tiny_patch16_224_frozenllm", llm="none", **sizes).eval()
    state = dict(host.state_dict())
    block = {f"attention.{name}.weight": (32, 32) for name in ("wq", "wk", "wv", "wo")}
    block |= {
        "feed_forward.w1.weight": (48, 32),
        "feed_forward.w2.weight": (32, 48),
        "feed_forward.w3.weight": (48, 32),
    }
    block |= {"attention_norm.weight": (32,), "ffn_norm.weight": (32,)}
    state |= {f"llama.layers.0.{name}": 0.2 * torch.randn(shape) for name, shape in block.items()}
    state |= {"llama.norm.weight": torch.ones(32), "llama_dim_mapper1.weight": torch.randn(32, 16)}
    state["llama_dim_mapper2.weight"] = torch.randn(16, 32)
    path = tmp_path / "official.pth"
    torch.save({"model": state, "epoch": 299, "args": argparse.Namespace(model="vit_llama")}, path)
    more = ["official.num_heads=2", "official.llm_heads=4", "sets=[imagenet,imagenet_c/fog]"]
    out = tmp_path / "out"
    main(arguments(path, family, out, *more))
    found = figures(out)
    assert found["model"]["kind"] == "official"
    assert found["transform"]["input_size"] == SIZE
    loaded = load_candidate(str(path), official={"num_heads": 2, "llm_heads": 4}).model
    assert loaded.llm is not None
    assert found["sets"]["imagenet"]["top1"] == official(loaded, family["imagenet"] / "val", CLEAN, None)
    assert found["sets"]["imagenet_c/fog/1"]["top1"] == official(loaded, family["imagenet_c"] / "fog/1", CROPPED, None)
    main(arguments(path, family, out, more[0], "official.llm_heads=2", more[2]))
    assert len(list((out / "sets").iterdir())) == 12, "another number of heads is another model"


def test_other_numbers_of_classes_are_refused(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ten.pt"
    torch.save(timm.create_model("test_vit", num_classes=1000).state_dict(), path)
    content = torch.load(run, weights_only=True)
    content["meta"]["config"] = content["meta"]["config"].replace("num_classes: 1000", "num_classes: 10")
    content["state_dict"]["model.head.weight"] = content["state_dict"]["model.head.weight"][:10].clone()
    content["state_dict"]["model.head.bias"] = content["state_dict"]["model.head.bias"][:10].clone()
    torch.save(content, tmp_path / "ten.pt")
    with pytest.raises(ValueError, match="has 10 classes: these data sets need the 1000 of ImageNet-1k"):
        load_candidate(str(tmp_path / "ten.pt"))
