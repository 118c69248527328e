"""save_pretrained, from_pretrained and push_to_hub: in folders, and against a hub on loopback."""

from __future__ import annotations

import base64
import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frozenllm.core import FrozenLLMLayer, load_block, random_block, save_block
from frozenllm.core.spec import BlockSpec
from frozenllm.vision2d import FrozenLLMViT

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
RANDOM = {"kind": "random", "spec": SPEC, "seed": 3}
SETTINGS = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "num_classes": 5}


def build(llm: Any = RANDOM, **options: Any) -> FrozenLLMViT:
    torch.manual_seed(0)
    return FrozenLLMViT(**{**SETTINGS, **options}, llm=llm).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def block_file(tmp_path: Path) -> Path:
    save_block(random_block(BlockSpec(**SPEC), seed=5), tmp_path / "block.safetensors")
    return tmp_path / "block.safetensors"


def same(a: nn.Module, b: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        return torch.equal(a(images), b(images))


VARIANTS: dict[str, dict[str, Any]] = {
    "random": {},
    "bundled": {"llm": {"source": "bundled", "layers": [0, 1], "positions": "rotary", "output_norm": "pretrained"}},
    "half precision": {"llm": {"source": "bundled", "dtype": "bfloat16"}},
    "integers": {},
    "fine-tuned": {"llm": {**RANDOM, "trainable": True}},
    "fine-tuned, own norm": {"llm": {"source": "bundled", "trainable": True, "output_norm": "pretrained"}},
    "low rank": {"llm": {**RANDOM, "lora_rank": 2, "lora_alpha": 6.0}},
    "mlp": {"llm": {"kind": "mlp", "hidden_size": 32}},
    "host alone": {"llm": "none"},
    "pooled, middle": {"global_pool": "avg", "llm_position": "middle", "reg_tokens": 2, "norm_layer": "rmsnorm"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant: str, tmp_path: Path, images: Tensor) -> None:
    model = build(**VARIANTS[variant])
    if variant == "integers":
        model.llm = FrozenLLMLayer(24, load_block("bundled", quantize="int8")).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # trained: nothing that a constructor would give again
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    again = FrozenLLMViT.from_pretrained(tmp_path)
    assert not again.training
    assert str(again.llm) == str(model.llm)
    assert same(model, again, images)
    again.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again/config.json").read_text()) == json.loads(
        (tmp_path / "config.json").read_text()
    )


def test_folder_holds_a_pointer_and_no_block_weights(tmp_path: Path) -> None:
    model = build("bundled")
    model.save_pretrained(tmp_path, model_card_kwargs={"license": "apache-2.0", "text": "Trained on nothing."})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if "block." in name and not name.startswith("blocks.")]  # noqa: SIM118
    assert names == ["llm.block._extra_state"]
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert stored < 4 * sum(p.numel() for p in model.parameters()) + 10_000
    record = json.loads((tmp_path / "config.json").read_text())["frozenllm"]["record"]
    assert (record["source"], record["sha256"]) == ("bundled", model.llm.block.record.sha256)
    card = (tmp_path / "README.md").read_text()
    for text in ("license: apache-2.0", "library_name: frozenllm", record["sha256"], "Trained on nothing."):
        assert text in card


def test_changes_after_building_are_saved(tmp_path: Path, images: Tensor) -> None:
    model = build()
    model.reset_classifier(3, "avg")
    model.set_input_size((24, 24))
    model.save_pretrained(tmp_path)
    again = FrozenLLMViT.from_pretrained(tmp_path)
    larger = nn.functional.interpolate(images, 24)
    assert again(larger).shape == (2, 3)
    assert same(model, again, larger)
    torch.manual_seed(1)
    assert same(copy.deepcopy(model), again, larger)


def test_what_config_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"norm_layer=.*cannot be written"):
        build(norm_layer=nn.LayerNorm).save_pretrained(tmp_path)
    model = build()
    model.norm = nn.BatchNorm1d(24)
    with pytest.raises(ValueError, match=r"changed after it was built.*norm\."):
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Identity in the frozen layer's place"):
        build(nn.Identity()).save_pretrained(tmp_path)


def test_block_that_moved(tmp_path: Path, block_file: Path, images: Tensor) -> None:
    model = build(load_block(block_file))
    model.save_pretrained(tmp_path / "model")
    assert "from_pretrained(..., block=" in (tmp_path / "model/README.md").read_text()
    assert same(model, FrozenLLMViT.from_pretrained(tmp_path / "model"), images)
    elsewhere = Path(shutil.move(block_file, tmp_path / "moved.safetensors"))
    with pytest.raises(ValueError, match=r"block\.safetensors.*give block="):
        FrozenLLMViT.from_pretrained(tmp_path / "model")
    assert same(model, FrozenLLMViT.from_pretrained(tmp_path / "model", block=elsewhere), images)
    assert same(model, FrozenLLMViT.from_pretrained(tmp_path / "model", block=load_block(elsewhere)), images)
    save_block(random_block(BlockSpec(**SPEC), seed=6), block_file)  # another block under the recorded name
    for options in ({}, {"block": random_block(BlockSpec(**SPEC), seed=7)}):
        with pytest.raises(ValueError, match="made with the block"):
            FrozenLLMViT.from_pretrained(tmp_path / "model", **options)


def test_same_weights_described_otherwise_are_refused(tmp_path: Path) -> None:
    build(random_block(BlockSpec(**SPEC))).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"describes the block otherwise \(norm_eps=0\.1, not 1e-06\)"):
        FrozenLLMViT.from_pretrained(tmp_path, block=random_block(BlockSpec(**SPEC, norm_eps=0.1)))


def test_damaged_folders(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path / "model")

    def broken(name: str, change: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "model", folder)
        change(folder)
        return folder

    def edit(folder: Path, **changes: Any) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    def lose_a_tensor(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        del state["norm.weight"]
        save_file(state, folder / "model.safetensors")

    def other_record(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        record = random_block(BlockSpec(**SPEC), seed=9).record
        save_file({**state, "llm.block._extra_state": record.to_tensor()}, folder / "model.safetensors")

    for name, change, message in (
        ("no config", lambda folder: (folder / "config.json").unlink(), r"no config\.json can be read"),
        ("no weights", lambda folder: (folder / "model.safetensors").unlink(), r"model\.safetensors"),
        ("foreign config", lambda folder: (folder / "config.json").write_text("{}"), "does not describe"),
        ("no record", lambda folder: edit(folder, frozenllm={"format": 1, "llm": RANDOM}), "cannot be read.*record"),
        ("newer format", lambda folder: edit(folder, frozenllm={"format": 2}), "format 2 is not 1"),
        ("other arguments", lambda folder: edit(folder, model_args={"nonsense": 1}), "nonsense"),
        ("lost tensor", lose_a_tensor, r"norm\.weight"),
        ("other record", other_record, "made with the block"),
    ):
        with pytest.raises(ValueError, match=message):
            FrozenLLMViT.from_pretrained(broken(name, change))
    with pytest.raises(ValueError, match="takes no num_classes"):
        FrozenLLMViT.from_pretrained(tmp_path / "model", num_classes=7)
    with pytest.raises(ValueError, match="takes no llm"):
        FrozenLLMViT.from_pretrained(tmp_path / "model", llm="bundled")
    build("none").save_pretrained(tmp_path / "alone")
    with pytest.raises(ValueError, match="has no language-model block"):
        FrozenLLMViT.from_pretrained(tmp_path / "alone", block="bundled")


def test_timm_reads_and_keeps_its_configuration(tmp_path: Path) -> None:
    options = {"img_size": 32, "num_classes": 4, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224_frozenllm", llm="bundled", **options).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 32, 32)
    for again in (
        FrozenLLMViT.from_pretrained(tmp_path),
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval(),
    ):
        assert same(model, again, images)
        ours, theirs = (timm.data.resolve_model_data_config(m) for m in (model, again))
        as_lists = {key: list(v) if isinstance(v, tuple) else v for key, v in ours.items()}  # as JSON has them
        theirs = {key: list(v) if isinstance(v, tuple) else v for key, v in theirs.items()}
        assert theirs == {**as_lists, "input_size": [3, 32, 32]}  # what the model takes; timm's entry stays at 224


class WritableHub(hub_server._Hub):
    """Also accepts new repositories and commits of small files, as the hub's web API describes them."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.path.split("?")[0].strip("/").split("/")
        if path[1:] == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.hub.add(name, self.hub.root / name)
            answer: dict[str, Any] = {"url": f"{self.hub.url}/{name}"}
        elif path[1:] == ["validate-yaml"]:
            answer = {"errors": [], "warnings": []}
        elif path[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        elif path[4:5] == ["commit"]:
            name = "/".join(path[2:4])
            self.commit(name, [json.loads(line) for line in body.splitlines()])
            answer = {"success": True, "commitOid": "c" * 40, "commitUrl": f"{self.hub.url}/{name}/commit/{'c' * 40}"}
        else:
            self.reply(404, {})
            return
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def commit(self, name: str, operations: list[dict[str, Any]]) -> None:
        for operation in operations:
            if operation["key"] == "file":
                value = operation["value"]
                assert value["encoding"] == "base64"
                file = self.hub.repositories[name] / value["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(base64.b64decode(value["content"]))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.HubServer]:
    monkeypatch.setattr(hub_server, "_Hub", WritableHub)
    with hub_server.serve_hub(tmp_path / "home", monkeypatch) as server:
        server.root = tmp_path / "repositories"
        yield server


def test_push_and_load_from_the_hub(hub: hub_server.HubServer, block_file: Path, images: Tensor) -> None:
    model = build("bundled")
    model.push_to_hub("somebody/vit-bundled", token="hf_test")
    pushed = hub.root / "somebody/vit-bundled"
    assert sorted(path.name for path in pushed.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert 'FrozenLLMViT.from_pretrained("somebody/vit-bundled")' in (pushed / "README.md").read_text()
    assert same(model, FrozenLLMViT.from_pretrained("somebody/vit-bundled"), images)
    with pytest.warns(UserWarning, match=r"block\.safetensors, which is on this machine"):
        build(load_block(block_file)).push_to_hub("somebody/vit-local", token="hf_test")
    with pytest.raises(ValueError, match=r"somebody/nothing"):
        FrozenLLMViT.from_pretrained("somebody/nothing")
