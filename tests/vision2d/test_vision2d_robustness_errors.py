"""What the robustness command says where something does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from toy_imagenet import (
    WNIDS,
    arguments,
    fails,
    noise,
)

from frozenllm.vision2d.robustness.sets import (
    ALEXNET_ERRORS,
    SEVERITIES,
)


def test_mistakes_give_one_sentence(
    run: Path, family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    foreign, garbage = tmp_path / "foreign.pt", tmp_path / "garbage.pt"
    torch.save({"weights": torch.zeros(2)}, foreign)
    garbage.write_bytes(b"no checkpoint")
    (tmp_path / "empty").mkdir()
    small = tmp_path / "small"
    for wnid in WNIDS[:2]:
        (small / wnid).mkdir(parents=True)
        noise(np.random.default_rng(0), 8, 8).save(small / wnid / "a.png")
    cases: list[tuple[list[str], str]] = [
        (["checkpoint=null"], "Nothing to evaluate is given: set checkpoint=..., or timm_model=<name>"),
        ([f"checkpoint={tmp_path}/no.pt"], "There is no checkpoint at"),
        ([f"checkpoint={foreign}"], "is neither a checkpoint of a run nor of the official release"),
        ([f"checkpoint={garbage}"], "garbage.pt cannot be read as a checkpoint"),
        (
            ["timm_model=vit_none", "checkpoint=null"],
            "timm cannot load vit_none from its pretrained weights: Unknown model",
        ),
        ([f"checkpoint={foreign}", "timm_model=test_vit"], "timm cannot load test_vit from"),
        (["timm_model=test_vit", "weights=ema"], "weights=... and llm_path=... are for checkpoints of runs"),
        (["weights=best"], "weights must be one of auto, raw, ema"),
        (["on_error=ignore"], "on_error must be raise or skip"),
        (["runtime.precision=fp8"], "runtime.precision must be fp32, bf16 or fp16"),
        (["runtime.precision=fp16"], "runtime.precision=fp16 needs a GPU"),
        (["runtime.device=tpu"], "runtime.device must be auto, cpu or cuda"),
        (["sets=[imagenet_v2]"], "There is no set 'imagenet_v2': choose from imagenet, imagenet_c"),
        (["sets=[imagenet_c/rain]"], "There is no set 'imagenet_c/rain'"),
        (["sets=[imagenet_a/fog]"], "There is no set 'imagenet_a/fog'"),
        (["sets=[]"], "sets is empty"),
        (["data.imagenet_r=null"], "No folder is given for ImageNet-R: set data.imagenet_r=..., or choose"),
        ([f"data.imagenet_r={tmp_path}/no"], "The path given for ImageNet-R does not exist"),
        ([f"data.imagenet_a={foreign}"], "The path given for ImageNet-A is neither a folder nor a .tar file"),
        ([f"data.imagenet_sketch={tmp_path}/empty"], "holds no images in subfolders"),
        ([f"data.imagenet_a={family['imagenet']}"], "has folders that are no classes of ImageNet-A: val"),
        ([f"data.imagenet_c={tmp_path}"], "lacks folders of ImageNet-C: gaussian_noise/1, "),
        (["partial=false"], "lacks classes of ImageNet: ".replace("ImageNet:", "ImageNet val:")),
        (["date.imagenet=x"], "There is no config key 'date"),
        ([f"out={foreign}/below"], "cannot be written"),
    ]
    for more, words in cases:
        keep = [argument for argument in arguments(run, family, out) if argument.split("=")[0] not in _keys(more)]
        if any("imagenet_sketch=" in entry for entry in more):
            more = [*more, "sets=[imagenet_sketch]"]
        assert words in fails([*keep, *more], capsys), more
    one = [f"data.imagenet_c={_all_corruptions(tmp_path, small)}", "sets=[imagenet_c/fog]"]
    keep = [argument for argument in arguments(run, family, out) if argument.split("=")[0] not in _keys(one)]
    assert "An image of ImageNet-C has 8 x 8 pixels, fewer than the model's 16" in fails([*keep, *one], capsys)
    assert not (out / "results.json").exists()


def _keys(arguments: list[str]) -> set[str]:
    return {argument.split("=")[0] for argument in arguments}


def _all_corruptions(root: Path, images: Path) -> Path:
    for corruption in ALEXNET_ERRORS:
        (root / "c" / corruption).mkdir(parents=True)
        for severity in SEVERITIES:
            (root / "c" / corruption / str(severity)).symlink_to(images)
    return root / "c"
