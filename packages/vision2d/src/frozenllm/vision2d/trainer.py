"""The model as one of transformers', for its ``Trainer`` and its Auto classes.

Example::

    from frozenllm.vision2d.trainer import FrozenLLMForImageClassification

    model = FrozenLLMForImageClassification.from_vit(FrozenLLMViT(llm="bundled", num_classes=10))
    trainer = transformers.Trainer(model, arguments, train_dataset=...)  # of {"pixel_values", "labels"}
    trainer.train()
    trainer.save_model("folder")
    model = FrozenLLMForImageClassification.from_pretrained("folder")

``Trainer`` needs accelerate: ``pip install "frozenllm-vision2d[transformers]"``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from frozenllm.core import LLMBlock, llm_blocks, reload_blocks
from frozenllm.vision2d.model import FrozenLLMViT
from frozenllm.vision2d.pretrained import describe_model, rebuild_model

__all__ = ["FrozenLLMForImageClassification", "FrozenLLMViTConfig"]


class FrozenLLMViTConfig(PreTrainedConfig):
    """Configuration of `FrozenLLMForImageClassification`: what `describe_model` says about the model.

    Args:
        vit: The description.
        **kwargs: As for transformers' class.
    """

    model_type = "frozenllm_vit"
    has_no_defaults_at_init = True

    vit: dict[str, Any] | None = None

    def __init__(self, vit: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if vit is not None and "id2label" not in kwargs:
            kwargs.setdefault("num_labels", vit["num_classes"])
        super().__init__(**kwargs)
        self.vit = vit


class FrozenLLMForImageClassification(PreTrainedModel):
    """An image classifier with a frozen layer, with transformers' forward.

    Checkpoints hold no weights of the frozen block. `from_pretrained` takes them from the recorded source and verifies
    them; a model whose block could not be filled refuses to run.

    Args:
        config: Its configuration.
        vit: The model itself; None builds it from the configuration.
        block: With ``vit=None``: another place where the block is, or the block itself.
    """

    config_class = FrozenLLMViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is the mean of its batch: Trainer divides it by the accumulated batches
    _no_split_modules = ("LLMBlock",)

    def __init__(
        self,
        config: FrozenLLMViTConfig,
        vit: FrozenLLMViT | None = None,
        block: LLMBlock | str | Path | None = None,
    ) -> None:
        super().__init__(config)
        if vit is None and config.vit is None:
            raise ValueError(
                "FrozenLLMViTConfig describes no model: start from FrozenLLMForImageClassification.from_vit(model)."
            )
        self.vit = vit if vit is not None else rebuild_model(FrozenLLMViT, config.vit or {}, block)
        self.post_init()

    @classmethod
    def from_vit(cls, vit: FrozenLLMViT, **config: Any) -> FrozenLLMForImageClassification:
        """Wrap a model; it is not copied.

        Args:
            vit: The model.
            **config: More fields of the configuration, such as ``id2label``.

        Raises:
            ValueError: The model cannot be described (see `describe_model`).
        """
        return cls(FrozenLLMViTConfig(vit=describe_model(vit), **config), vit=vit)

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any) -> ImageClassifierOutput:
        """Class scores, and the loss where there are labels.

        Args:
            pixel_values: Images, (B, C, H, W).
            labels: Classes (B,), or their probabilities (B, C), as mixup gives.
            **kwargs: Not used.

        Returns:
            ``loss`` (scalar or None) and ``logits`` (B, C).
        """
        logits = self.vit(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers; timm's own checkpointing does it, in every layer, and takes no options."""
        options = kwargs.pop("gradient_checkpointing_kwargs", None) or {}
        asked = {**options, **kwargs}.items()
        ignored = sorted(name for name, value in asked if value is True or value not in (None, False, 1))
        if ignored:
            warnings.warn(f"Options of activation checkpointing are ignored: {', '.join(ignored)}.", stacklevel=2)
        self.vit.set_grad_checkpointing(True)

    def gradient_checkpointing_disable(self) -> None:
        """As in transformers."""
        self.vit.set_grad_checkpointing(False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The model initialises itself."""

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As in transformers; the configuration follows changes of the model, such as another head."""
        self.config.vit = describe_model(self.vit)
        if self.config.num_labels != self.vit.num_classes:
            self.config.num_labels = self.vit.num_classes
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with ``block=``: another place where the frozen block is, or the block itself.

        Raises:
            ValueError: The block cannot be found, or is another one; or weights are missing.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            keys = sorted(map(str, info.get(name) or ()))
            if keys:
                raise ValueError(
                    f"{pretrained_model_name_or_path}: {name.removesuffix('_keys')} weights: {', '.join(keys[:3])}."
                )
        reload_blocks(model)
        for _, module in llm_blocks(model):
            module.to(model.device)
        return (model, info) if wants_info else model

    def named_non_persistent_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """Without those of language-model blocks: transformers replaces what it finds here by empty tensors."""
        theirs = {id(buffer) for _, block in llm_blocks(self) for buffer in block.buffers()}
        return (item for item in super().named_non_persistent_buffers(*args, **kwargs) if id(item[1]) not in theirs)


AutoConfig.register(FrozenLLMViTConfig.model_type, FrozenLLMViTConfig)
AutoModelForImageClassification.register(FrozenLLMViTConfig, FrozenLLMForImageClassification)
