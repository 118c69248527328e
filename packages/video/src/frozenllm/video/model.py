"""Video transformers with a frozen language-model block: transformers' VideoMAE with one more layer in it.

The layer stands between the last block and the mean over all tokens (Pang et al., ICLR 2024, section 4.4, and the
official ``video_understanding/modeling_finetune_llama.py``): blocks, adapter in, language-model block, adapter out,
mean, norm, head. There is no class token, so every token of the layer is read.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from frozenllm.core import FrozenLLMLayer, LLMBlock, build_llm_layer

__all__ = ["FrozenLLMVideoMAE", "videomae_config"]

LLM = str | Mapping[str, Any] | nn.Module | None
NORM_EPS = 1e-6
"""Of every norm of VideoMAE; transformers' defaults are 1e-12, and 1e-5 for the one before the head."""

_SIZES = {
    "small": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
_SHARED = {"image_size": 224, "patch_size": 16, "num_frames": 16, "tubelet_size": 2, "num_hidden_layers": 12}


def videomae_config(size: str = "small", **options: Any) -> VideoMAEConfig:
    """transformers' config of the paper's hosts: 16 frames of 224 pixels, tubelets of 2 x 16 x 16, 12 blocks.

    Args:
        size: ``"small"`` (384 wide, 6 heads) or ``"base"`` (768 wide, 12 heads).
        **options: Fields of `transformers.VideoMAEConfig` to have otherwise; ``num_labels`` is 174 unless given.

    Raises:
        ValueError: The size or an option is unknown, or sizes do not go together.
    """
    if size not in _SIZES:
        raise ValueError(f"size must be one of {', '.join(_SIZES)}, not {size!r}.")
    fixed = {"layer_norm_eps": NORM_EPS, "use_mean_pooling": True}
    known = {"num_labels", "attn_implementation", *vars(VideoMAEConfig())}
    unknown = sorted(set(options) - known)
    if unknown:
        raise ValueError(f"The model has no option {', '.join(unknown)}: see transformers' VideoMAEConfig.")
    settings = {**_SHARED, **_SIZES[size], "num_labels": 174, **fixed, **options}
    if not settings["use_mean_pooling"]:
        raise ValueError("use_mean_pooling must be true: the frozen layer stands before the mean over all tokens.")
    _check_sizes(settings)
    return VideoMAEConfig(**settings)


class FrozenLLMVideoMAE(nn.Module):
    """VideoMAE's classifier with a frozen layer after its last block.

    Weights have the names of transformers' `VideoMAEForVideoClassification`, and ``llm.*``. What transformers lacks of
    the original is put in: drop path, the head's small start, and an epsilon of 1e-6 in the norm before the head.

    The host's weights are drawn before the layer is built: under one seed, hosts with and without it start equal.

    Args:
        config: From `videomae_config`; None for ViT-S with 174 classes.
        llm: What stands in the layer's place: a source of weights (``"bundled"``, a path, a hub repository), the
            mapping of the ``llm`` config group, a block, a ready layer with the forward signature of
            `frozenllm.core.FrozenLLMLayer`, or ``"none"``/None for the host alone. Adapters start as PyTorch's linear
            layers do, unless the mapping says otherwise (official code).
        drop_path_rate: Chance that a sample skips a branch of the last block; it rises linearly from 0 at the first.
        head_init_scale: Factor on the new head's weights (VideoMAE's ``init_scale``).

    Attributes:
        videomae: transformers' `VideoMAEModel`.
        llm: The layer, or None.
        fc_norm: Norm of the mean.
        classifier: The head.
        config: A copy of the config.

    Raises:
        ValueError: The config pools otherwise than by the mean, or an option is out of range.
    """

    def __init__(
        self,
        config: VideoMAEConfig | None = None,
        *,
        llm: LLM = None,
        drop_path_rate: float = 0.0,
        head_init_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        config = videomae_config() if config is None else copy.deepcopy(config)
        if not config.use_mean_pooling:
            raise ValueError("FrozenLLMVideoMAE averages all tokens: build its config with use_mean_pooling=True.")
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be at least 0 and below 1, not {drop_path_rate}.")
        _check_sizes(vars(config))
        config.layer_norm_eps = NORM_EPS
        host = VideoMAEForVideoClassification(config)
        self.config = config
        self.videomae = host.videomae
        self.fc_norm = host.fc_norm
        self.fc_norm.eps = NORM_EPS
        self.classifier = host.classifier
        self.drop_path_rate = drop_path_rate
        _add_drop_path(self.videomae.encoder.layer, drop_path_rate)
        self.reset_head(head_init_scale)
        self._place_positions()
        self.llm = _build_layer(config.hidden_size, llm)

    def reset_head(self, scale: float = 1.0) -> None:
        """Draw the head anew: a truncated normal distribution of std 0.02, times ``scale``; biases 0 (VideoMAE)."""
        nn.init.trunc_normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        with torch.no_grad():
            self.classifier.weight.mul_(scale)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width; their product is the number of tokens, time varies slowest."""
        (height, width), (rows, columns) = _pair(self.config.image_size), _pair(self.config.patch_size)
        return self.config.num_frames // self.config.tubelet_size, height // rows, width // columns

    def tokens(self, pixel_values: Tensor) -> Tensor:
        """Tokens after the last block, which enter the frozen layer.

        Args:
            pixel_values: Clips, (B, T, C, H, W).

        Returns:
            (B, N, hidden_size).

        Raises:
            ValueError: The clips have another shape than the config says.
        """
        wanted = (self.config.num_frames, self.config.num_channels, *_pair(self.config.image_size))
        if pixel_values.ndim != 5 or tuple(pixel_values.shape[1:]) != wanted:
            raise ValueError(
                f"Clips must have the shape (batch, {', '.join(map(str, wanted))}), which is frames, channels, height, "
                f"width; these have {tuple(pixel_values.shape)}."
            )
        embedded = self.videomae.embeddings(pixel_values, None)
        return self.videomae.encoder(embedded).last_hidden_state

    def forward_features(self, pixel_values: Tensor) -> Tensor:
        """All tokens that the mean is taken of, (B, N, hidden_size)."""
        tokens = self.tokens(pixel_values)
        return tokens if self.llm is None else self.llm(tokens)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Class scores.

        Args:
            pixel_values: Clips, (B, T, C, H, W), normalised.

        Returns:
            (B, num_labels), before the softmax.
        """
        return self.classifier(self.fc_norm(self.forward_features(pixel_values).mean(dim=1)))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, of the host and of the frozen layer."""
        # transformers 6 leaves out the older names, 5.0 lacks the newer ones
        prefix = "activation" if hasattr(self.videomae, "activation_checkpointing_enable") else "gradient"
        switch = getattr(self.videomae, f"{prefix}_checkpointing_{'enable' if enable else 'disable'}")
        switch(*([{"use_reentrant": False}] if enable else []))
        if hasattr(self.llm, "checkpoint_activations"):
            self.llm.checkpoint_activations = enable

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenLLMVideoMAE:
        super()._apply(fn, recurse)
        self._place_positions()
        return self

    def _place_positions(self) -> None:
        """Keep the table of positions in float32, where the weights are.

        transformers has it as a plain tensor, which stays behind on ``.to(device)`` and is copied over at every step. A
        buffer would be rounded by ``.half()`` and lost by ``.to_empty()``.
        """
        embeddings = self.videomae.embeddings
        table, device = embeddings.position_embeddings, embeddings.patch_embeddings.projection.weight.device
        if device.type == "meta":
            return
        if table.is_meta:
            with torch.device("cpu"):
                table = get_sinusoid_encoding_table(embeddings.num_patches, self.config.hidden_size)
        embeddings.position_embeddings = table.to(device)


def _add_drop_path(layers: nn.ModuleList, rate: float) -> None:
    """Put drop path where transformers has dropout, at the end of both branches of every block.

    The module there has no weights, so the names of the host's do not change.
    """
    for layer, chance in zip(layers, torch.linspace(0, rate, len(layers), device="cpu").tolist(), strict=True):
        if chance == 0:
            continue
        for branch in (layer.attention.output, layer.output):
            drop = StochasticDepth(chance, mode="row")
            branch.dropout = drop if branch.dropout.p == 0 else nn.Sequential(branch.dropout, drop)


def _build_layer(dim: int, llm: LLM) -> nn.Module | None:
    if isinstance(llm, LLMBlock):
        return FrozenLLMLayer(dim, llm)
    if isinstance(llm, nn.Module):
        return llm
    return build_llm_layer(dim, llm, adapter_init="default")


def _check_sizes(settings: Mapping[str, Any]) -> None:
    """Raise where sizes do not divide, which transformers finds out late or not at all."""
    for whole, part in (("hidden_size", "num_attention_heads"), ("num_frames", "tubelet_size")):
        if settings[part] < 1 or settings[whole] % settings[part] or settings[whole] < 1:
            raise ValueError(f"{whole}={settings[whole]} is not a multiple of {part}={settings[part]}.")
    for side, patch in zip(_pair(settings["image_size"]), _pair(settings["patch_size"]), strict=True):
        if patch < 1 or side < 1 or side % patch:
            raise ValueError(f"image_size={settings['image_size']} does not divide into patches of {patch} pixels.")


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)  # type: ignore[return-value]
