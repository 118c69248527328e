"""The two encoders under METER's fusion, composed of transformers' `CLIPVisionModel` and `RobertaModel`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frozenllm.core.weights.hub import check_hub
from frozenllm.vqa.quiet import quiet

Source = str | Mapping[str, Any]
"""A folder in transformers' layout, a hub repository, or a configuration's fields for random weights."""


class ImageEncoder(nn.Module):
    """CLIP's vision transformer without its last layer; the final norm is applied to all tokens (METER's choice).

    Args:
        source: Where its configuration and weights come from.
        pretrained: False takes only the configuration from there.
        image_size: Pixels of the (square) images; position embeddings are resampled where they were trained for
            another size. None for the source's own.
        drop_layers: Layers that are left out at the end.

    Raises:
        ValueError: The source cannot be read or is not CLIP's, or a size does not fit.
    """

    def __init__(
        self, source: Source, *, pretrained: bool = True, image_size: int | None = None, drop_layers: int = 1
    ) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        model = _load(CLIPVisionModel, CLIPVisionConfig, source, pretrained)
        # transformers before 5.20 keeps the parts one level deeper.
        parts = getattr(model, "vision_model", model)
        config = model.config
        if not 0 <= drop_layers < config.num_hidden_layers:
            raise ValueError(f"drop_layers must leave a layer of the {config.num_hidden_layers}, not be {drop_layers}.")
        self.embeddings = parts.embeddings
        self.pre_norm = parts.pre_layrnorm
        self.layers = nn.ModuleList(list(parts.encoder.layers)[: config.num_hidden_layers - drop_layers])
        self.post_norm = parts.post_layernorm
        self.width: int = config.hidden_size
        self.patch_size: int = config.patch_size
        self.image_size: int = config.image_size
        if image_size is not None and image_size != config.image_size:
            self.resize(image_size)

    @property
    def grid(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Tokens (B, 1 + patches, width) of images (B, 3, H, W), the class token first."""
        x = self.pre_norm(self.embeddings(pixel_values))
        for layer in self.layers:
            output = layer(x, attention_mask=None)
            x = output[0] if isinstance(output, tuple) else output
        return self.post_norm(x)

    def resize(self, image_size: int) -> None:
        """Resample the position embeddings (bicubic, as METER does) for images of another size."""
        if image_size < 1 or image_size % self.patch_size:
            raise ValueError(f"image_size must be a multiple of the {self.patch_size} pixels of a patch.")
        old = self.embeddings.position_embedding.weight.detach()
        new = resample_positions(old, image_size // self.patch_size)
        embedding = nn.Embedding(*new.shape, device=old.device, dtype=old.dtype)
        with torch.no_grad():
            embedding.weight.copy_(new)
        self.embeddings.position_embedding = embedding
        self.embeddings.register_buffer(
            "position_ids", torch.arange(len(new), device=old.device)[None], persistent=False
        )
        self.embeddings.num_positions, self.embeddings.num_patches = len(new), len(new) - 1
        self.embeddings.image_size = self.image_size = image_size


class TextEncoder(nn.Module):
    """`RobertaModel` without its pooler.

    Args:
        source: Where its configuration and weights come from.
        pretrained: False takes only the configuration from there.

    Raises:
        ValueError: The source cannot be read or is not RoBERTa's.
    """

    def __init__(self, source: Source, *, pretrained: bool = True) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.model = _load(RobertaModel, RobertaConfig, source, pretrained, add_pooling_layer=False)
        self.width: int = self.model.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens (B, L, width) of token ids (B, L); ``attention_mask`` (B, L) bool, False = padding."""
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def resample_positions(weight: Tensor, grid: int) -> Tensor:
    """Position embeddings (1 + n * n, width), the class token's first, for ``grid`` x ``grid`` patches."""
    old = math.isqrt(len(weight) - 1)
    if old * old != len(weight) - 1:
        raise ValueError(f"{len(weight) - 1} position embeddings do not make a square grid of patches.")
    if old == grid:
        return weight
    patches = weight[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches.float(), size=(grid, grid), mode="bicubic").to(weight.dtype)
    return torch.cat([weight[:1], patches.permute(0, 2, 3, 1).reshape(grid * grid, -1)])


def _load(model: type, config: type, source: Source, pretrained: bool, **options: Any) -> Any:
    if isinstance(source, Mapping):
        return model(config(**source), **options)
    local = Path(source).expanduser()
    if str(source).startswith(("/", ".", "~")) and not local.is_dir():
        raise ValueError(f"The encoder's folder {source} does not exist.")
    where = str(local) if local.is_dir() else source
    if not local.is_dir():
        check_hub(where)
    try:
        settings = config.from_pretrained(where)
        if not pretrained:
            return model(settings, **options)
        with quiet() if local.is_dir() else nullcontext():
            return model.from_pretrained(where, config=settings, dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).strip().splitlines()[0].removesuffix(".")
        raise ValueError(f"{model.__name__} cannot be read from {source}: {first}.") from error
