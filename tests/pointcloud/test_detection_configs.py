"""The shipped configs: mmdet3d's own, with the layer and without; and what is said where mmdet3d is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from frozenllm.pointcloud.detection import config_path, configs
from frozenllm.pointcloud.detection.extra import require_mmdet3d

ORIGINALS = {
    "votenet_scannet": "votenet/votenet_8xb8_scannet-3d.py",
    "votenet_sunrgbd": "votenet/votenet_8xb16_sunrgbd-3d.py",
    "pointpillars_kitti": "pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py",
}
ADDED = {"custom_imports", "custom_hooks", "randomness", "default_hooks"}


def test_every_detector_comes_with_and_without_the_layer() -> None:
    hosts = {*ORIGINALS, "toy_votenet", "toy_pointpillars"}
    assert set(configs()) == hosts | {f"{name}_frozenllm" for name in hosts}


def plain(value: Any) -> Any:
    """A config without the marks of where its parts came from."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "_scope_"}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", ORIGINALS)
def test_configs_differ_from_mmdet3d_s_in_what_they_name(name: str, uncompiled_mmdet3d: None) -> None:
    from mmengine.config import Config
    from mmengine.utils import get_installed_path

    original = Path(get_installed_path("mmdet3d")) / ".mim" / "configs" / ORIGINALS[name]
    wanted = plain(Config.fromfile(original).to_dict())
    host, both = (plain(Config.fromfile(config_path(n)).to_dict()) for n in (name, f"{name}_frozenllm"))
    assert {k: v for k, v in host.items() if k not in ADDED} == {k: v for k, v in wanted.items() if k not in ADDED}
    hooks = {**wanted["default_hooks"], "checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2}}
    assert host["default_hooks"] == hooks
    assert {k for k in both if both[k] != host[k]} == {"model", "optim_wrapper"}
    neck = both["model"].pop("neck")
    assert neck["type"] == "FrozenLLMNeck"
    assert neck["llm"] == {"source": "huggyllama/llama-7b", "layers": [-1]}
    assert neck["residual"] is False
    if name == "pointpillars_kitti":
        assert neck["neck"] == host["model"].pop("neck")
        both["model"]["backbone"] = both["model"]["backbone"].pop("backbone")
    assert both["model"] == host["model"]
    both["optim_wrapper"].pop("paramwise_cfg")
    assert both["optim_wrapper"] == host["optim_wrapper"]


@pytest.mark.parametrize("name", ORIGINALS)
def test_full_size_detectors_build_with_the_layer(name: str, uncompiled_mmdet3d: None) -> None:
    from mmdet3d.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope, init_default_scope

    cfg = Config.fromfile(config_path(f"{name}_frozenllm"))
    cfg.merge_from_dict({"model.neck.llm.source": "bundled"})
    scope = DefaultScope.get_current_instance()
    init_default_scope("mmdet3d")
    try:
        model = MODELS.build(cfg.model)
    finally:
        if scope is not None:
            DefaultScope._instance_dict.pop(scope.instance_name, None)
            DefaultScope._instance_dict[scope.instance_name] = scope
    assert model.neck.llm.adapter_in.weight.shape == (256, 256)
    keys = list(model.state_dict())
    assert [key for key in keys if ".block." in key] == ["neck.llm.block._extra_state"]


def test_a_missing_mmdet3d_is_answered_with_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmcv.ops", None)
    with pytest.raises(ImportError) as caught:
        require_mmdet3d()
    sentence = str(caught.value)
    assert "pip install 'frozenllm-pointcloud[mmdet3d]'" in sentence
    assert "pip install --no-build-isolation --no-deps mmcv==2.1.0" in sentence
    assert "\n" not in sentence
