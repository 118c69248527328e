"""The models in other people's loops: timm's parts, transformers' Trainer, torch.export."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.models import resume_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import Tensor, nn

import frozenllm.vision2d  # noqa: F401 - registers the variants
from frozenllm.core import llm_blocks, load_block, random_block, save_block
from frozenllm.core.spec import BlockSpec
from frozenllm.vision2d import FrozenLLMViT

SPEC = {"hidden_size": 48, "num_heads": 4, "num_kv_heads": 2, "head_dim": 12, "intermediate_size": 96}
RANDOM = {"kind": "random", "spec": SPEC, "seed": 3}


def build(llm: Any = RANDOM, seed: int = 0) -> FrozenLLMViT:
    torch.manual_seed(seed)
    return FrozenLLMViT(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, num_classes=5, llm=llm)


def block_bytes(model: nn.Module) -> list[Tensor]:
    return [buffer.clone() for _, block in llm_blocks(model) for buffer in block.buffers()]


def tensors_in(content: Any) -> dict[str, Tensor]:
    """Every tensor anywhere in a checkpoint, by its path."""
    if isinstance(content, Tensor):
        return {"": content}
    if not isinstance(content, dict | list | tuple):
        return {}
    items = content.items() if isinstance(content, dict) else enumerate(content)
    return {f"{key}.{path}": tensor for key, value in items for path, tensor in tensors_in(value).items()}


class Loop:
    """What timm's own train.py sets up."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.model = build(seed=seed).train()
        self.optimizer = create_optimizer_v2(self.model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.5)
        self.scheduler = CosineLRScheduler(self.optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-4)
        self.ema = ModelEmaV3(self.model, decay=0.9)
        self.scaler = NativeScaler(device="cpu")
        self.saver = CheckpointSaver(
            self.model, self.optimizer, model_ema=self.ema, checkpoint_dir=str(folder), recovery_dir=str(folder)
        )

    def epoch(self, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        for _ in range(2):
            images, targets = torch.randn(6, 3, 16, 16, generator=generator), torch.arange(6) % 5
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), targets)
            self.scaler(loss, self.optimizer, clip_grad=1.0, parameters=self.model.parameters())
            self.ema.update(self.model)
        self.scheduler.step(number + 1)


def test_timms_own_loop(tmp_path: Path) -> None:
    loop = Loop(tmp_path, seed=0)
    before = block_bytes(loop.model)
    scales = {group["lr_scale"] for group in loop.optimizer.param_groups}
    assert scales == {0.5**3, 0.5**2, 0.5, 1.0}  # embeddings, two blocks, head with the adapters
    held = {id(p): group["lr_scale"] for group in loop.optimizer.param_groups for p in group["params"]}
    assert held[id(loop.model.llm.adapter_in.weight)] == held[id(loop.model.head.weight)] == 1.0
    assert set(held) == {id(p) for p in loop.model.parameters()}
    for number in range(2):
        loop.epoch(number)
    loop.saver.save_checkpoint(epoch=1, metric=50.0)
    content = torch.load(tmp_path / "last.pth.tar", weights_only=False)  # timm writes it, with an argparse.Namespace
    sizes = {tensor.numel() for tensor in before}
    inside = tensors_in({key: content[key] for key in ("state_dict", "state_dict_ema", "optimizer")})
    assert len(inside) > 100
    of_block = {path for path in inside if "llm.block" in path}
    assert of_block == {"state_dict.llm.block._extra_state.", "state_dict_ema.llm.block._extra_state."}
    assert not any(tensor.numel() == size for tensor in inside.values() for size in sizes if size > 3000)

    again = Loop(tmp_path / "again", seed=1)
    start = resume_checkpoint(again.model, str(tmp_path / "last.pth.tar"), again.optimizer, log_info=False)
    timm.models.load_checkpoint(again.ema.module, str(tmp_path / "last.pth.tar"), use_ema=True)
    again.scheduler.step(start)
    for number in range(2, 4):
        loop.epoch(number)
        again.epoch(number)
    for ours, theirs in ((loop.model, again.model), (loop.ema.module, again.ema.module)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    for model in (loop.model, loop.ema.module, again.model, again.ema.module):
        assert all(torch.equal(a, b) for a, b in zip(block_bytes(model), before, strict=True))
    live = [buffer.data_ptr() for _, block in llm_blocks(loop.model) for buffer in block.buffers()]
    assert live == [buffer.data_ptr() for _, block in llm_blocks(loop.ema.module) for buffer in block.buffers()]


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_batch(strict: bool, tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224_frozenllm", llm="bundled", img_size=64, depth=1, num_classes=4)
    model.eval()
    assert model.reads_class_token
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(model, (torch.randn(3, 3, 64, 64),), dynamic_shapes={"x": {0: batch}}, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (2, 3, 40):
        images = torch.randn(size, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images), model(images), atol=1e-5, rtol=1e-5)


class Toys(torch.utils.data.Dataset):
    """Squares in one of four corners, or none."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index)) * 0.1
        if label := index % 5:
            row, column = divmod(label - 1, 2)
            image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] += 1
        return {"pixel_values": image, "labels": label}


@pytest.fixture
def classifier() -> Any:
    return pytest.importorskip("frozenllm.vision2d.trainer").FrozenLLMForImageClassification


def trainer(model: nn.Module, folder: Path, **options: Any) -> Any:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate: frozenllm-vision2d[transformers]")
    from transformers import Trainer, TrainingArguments

    settings = {
        "max_steps": 8,
        "save_steps": 4,
        "per_device_train_batch_size": 10,
        "learning_rate": 3e-3,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "seed": 0,
    }
    arguments = TrainingArguments(str(folder), **{**settings, **options})
    return Trainer(model, arguments, train_dataset=Toys(), eval_dataset=Toys())


def test_trainer_trains_saves_and_resumes(tmp_path: Path, classifier: Any) -> None:
    model = classifier.from_vit(build("bundled"))
    before, start = block_bytes(model), model.vit.llm.adapter_in.weight.clone()
    runner = trainer(model, tmp_path / "run")
    worse = runner.evaluate()["eval_loss"]
    runner.train()
    assert runner.evaluate()["eval_loss"] < worse - 0.05
    assert not torch.equal(model.vit.llm.adapter_in.weight, start)
    assert all(torch.equal(a, b) for a, b in zip(block_bytes(model), before, strict=True))
    saved = load_file(tmp_path / "run/checkpoint-8/model.safetensors")
    assert [name for name in saved if ".block." in name] == ["vit.llm.block._extra_state"]

    images = torch.stack([Toys()[i]["pixel_values"] for i in range(5)])
    with torch.no_grad():
        wanted = model.eval()(images).logits
        again = classifier.from_pretrained(tmp_path / "run/checkpoint-8")
        assert torch.equal(again(images).logits, wanted)
        from transformers import AutoModelForImageClassification

        assert torch.equal(
            AutoModelForImageClassification.from_pretrained(tmp_path / "run/checkpoint-8")(images)[0], wanted
        )
    assert all(block.is_loaded for _, block in llm_blocks(again))

    resumed = classifier.from_vit(build("bundled", seed=1))
    runner = trainer(resumed, tmp_path / "run")
    runner.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-4"))
    with torch.no_grad():
        torch.testing.assert_close(resumed.eval()(images).logits, wanted)


def test_trainer_accumulates_gradients_as_one_large_batch(tmp_path: Path, classifier: Any) -> None:
    heads = []
    for batch, accumulate in ((20, 1), (5, 4)):
        model = classifier.from_vit(build())
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulate}
        options |= {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        runner = trainer(model, tmp_path / str(batch), max_steps=1, save_strategy="no", **options)
        loss = runner.train().training_loss
        assert loss == pytest.approx(1.6, abs=0.3)  # near ln 5, and not four times that
        heads.append(model.vit.head.weight.detach().clone())
    torch.testing.assert_close(heads[0], heads[1], atol=1e-6, rtol=1e-5)


def test_trainer_with_soft_labels_and_checkpointed_activations(tmp_path: Path, classifier: Any) -> None:
    model = classifier.from_vit(build())
    images, labels = torch.randn(3, 3, 16, 16), torch.tensor([0, 3, 4])
    hard, soft = model(images, labels), model(pixel_values=images, labels=F.one_hot(labels, 5).float())
    torch.testing.assert_close(hard.loss, soft.loss)
    torch.testing.assert_close(hard.loss, F.cross_entropy(model.vit(images), labels))
    assert model(images).loss is None
    hard.loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.train().gradient_checkpointing_enable()
    assert model.vit.grad_checkpointing
    assert model.vit.llm.checkpoint_activations
    model(images, labels).loss.backward()
    for p, grad in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, grad, atol=1e-5, rtol=1e-4)
    model.gradient_checkpointing_disable()
    assert not model.vit.grad_checkpointing
    with pytest.warns(UserWarning, match="use_reentrant"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})


LAYERS: dict[str, Any] = {
    "random": RANDOM,
    "low rank": {**RANDOM, "lora_rank": 2},
    "fine-tuned": {**RANDOM, "trainable": True},
    "two blocks in half precision": {"source": "bundled", "layers": [0, 1], "dtype": "bfloat16"},
    "mlp": {"kind": "mlp", "hidden_size": 32},
    "host alone": "none",
}


@pytest.mark.parametrize("layer", LAYERS)
def test_transformers_round_trip(layer: str, tmp_path: Path, classifier: Any) -> None:
    model = classifier.from_vit(build(LAYERS[layer]), id2label={i: f"class {i}" for i in range(5)}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    again = classifier.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(images).logits, again(images).logits)
    assert again.config.id2label[3] == "class 3"
    assert str(again.vit.llm) == str(model.vit.llm)


def test_transformers_block_is_right_or_refused(tmp_path: Path, classifier: Any) -> None:
    file = tmp_path / "block.safetensors"
    save_block(random_block(BlockSpec(**SPEC), seed=5), file)
    model = classifier.from_vit(build(load_block(file))).eval()
    model.vit.reset_classifier(3)
    model.save_pretrained(tmp_path / "model")
    moved = file.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ValueError, match=r"block\.safetensors.*give block="):
        classifier.from_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 16, 16)
    for block in (moved, load_block(moved)):
        again = classifier.from_pretrained(tmp_path / "model", block=block)
        assert torch.equal(model(images).logits, again(images).logits)
        assert again.config.num_labels == 3
    with pytest.raises(ValueError, match="made with the block"):
        classifier.from_pretrained(tmp_path / "model", block=random_block(BlockSpec(**SPEC), seed=6))
    again.to("meta").to_empty(device="cpu")
    with pytest.raises(RuntimeError, match="reload_blocks"):
        again(images)

    weights = tmp_path / "model/model.safetensors"
    state = load_file(weights)
    other = {**state, "vit.llm.block._extra_state": random_block(BlockSpec(**SPEC), seed=9).record.to_tensor()}
    save_file(other, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="made with the block"):
        classifier.from_pretrained(tmp_path / "model", block=moved)
    lost = {name: tensor for name, tensor in state.items() if name != "vit.norm.weight"}
    save_file(lost, weights, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing weights: vit\.norm\.weight"):
        classifier.from_pretrained(tmp_path / "model", block=moved)


def test_transformers_configuration_alone_is_refused(tmp_path: Path, classifier: Any) -> None:
    from transformers import AutoConfig

    with pytest.raises(ValueError, match="from_vit"):
        classifier(classifier.config_class())
    model = classifier.from_vit(build())
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.num_labels == 5
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "frozenllm_vit"
    fresh = classifier(copy.deepcopy(config))
    assert fresh(torch.randn(1, 3, 16, 16)).logits.shape == (1, 5)
