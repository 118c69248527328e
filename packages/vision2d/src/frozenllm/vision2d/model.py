"""Vision transformers with a frozen language-model block: timm's class with one more layer in it.

The layer stands between the transformer blocks and the final norm (Pang et al., ICLR 2024, section 3 and the official
``image_classification/models/vit_llama.py``): blocks, adapter in, language-model block, adapter out, norm, pool, head.

The variants are registered in timm when this module is imported::

    import frozenllm.vision2d
    model = timm.create_model("vit_small_patch16_224_frozenllm", llm="bundled", num_classes=10)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from frozenllm.core import FrozenLLMLayer, LLMBlock, build_llm_layer
from frozenllm.vision2d.pretrained import HubModel

__all__ = ["FrozenLLMViT"]

LLM = str | Mapping[str, Any] | nn.Module | None


class FrozenLLMViT(VisionTransformer, HubModel):
    """timm's `VisionTransformer` with a frozen layer among its blocks.

    Every argument and method of timm's class keeps its meaning. The frozen layer counts as the last part of the block
    that it follows: `forward_intermediates` returns that block's output with the layer applied, so that its last
    normalised intermediate still equals `forward_features`. The adapters match no pattern of timm's `group_matcher`
    and so share the last layer-decay group with the head.

    The host's weights are drawn before the layer is built: under one seed, hosts with and without it start equal.

    Args:
        *args: As for timm's `VisionTransformer`.
        llm: What stands in the layer's place: a source of weights (``"bundled"``, a path, a hub repository), the
            mapping of the ``llm`` config group, a block, a ready layer with the forward signature of
            `frozenllm.core.FrozenLLMLayer`, or ``"none"``/None for the host alone. Adapters start from a normal
            distribution of std 0.02, truncated, unless the mapping says otherwise (official code; paper C.1).
        llm_position: Where it stands: ``"tail"`` (after the last block), ``"middle"`` (after half of them),
            ``"head"`` (before the first), or the number of blocks before it (paper Table D, which does not give the
            indices of its middle and head).
        **kwargs: As for timm's `VisionTransformer`.

    Attributes:
        llm: The layer, or None.
        llm_index: The number of blocks before the layer.
    """

    def __init__(self, *args: Any, llm: LLM = None, llm_position: str | int = "tail", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.llm_index = _resolve_position(llm_position, len(self.blocks))
        self.llm = _build_layer(self.embed_dim, llm)
        if self.llm is not None and (kwargs.get("device") is not None or kwargs.get("dtype") is not None):
            self.llm.to(device=kwargs.get("device"), dtype=kwargs.get("dtype"))

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """As in timm; the adapters start as the frozen layer says, whatever the mode."""
        super().init_weights(mode, needs_reset=needs_reset)
        reset = getattr(getattr(self, "llm", None), "reset_adapters", None)  # timm calls this before there is a layer
        if reset is not None:
            reset()

    def tokens(self, x: Tensor) -> Tensor:
        """The tokens that enter the frozen layer, ``(B, N, embed_dim)``; in a host alone, those where it would stand.

        ``N`` counts the prefix tokens (class, registers), which come first.
        """
        return self._encode(x, depth=self.llm_index, with_llm=False)[0]

    def _apply_llm(self, x: Tensor, depth: int, readout: slice | None = None) -> Tensor:
        if self.llm is None or depth != self.llm_index:
            return x
        return self.llm(x) if readout is None else self.llm(x, readout=readout)

    def _encode(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        readout: slice | None = None,
        take: Collection[int] = (),
        depth: int | None = None,
        with_llm: bool = True,
    ) -> tuple[Tensor, list[Tensor]]:
        """Embeddings, blocks and the frozen layer, without the final norm.

        Args:
            x: Images, ``(B, C, H, W)``.
            attn_mask: As in timm; only for a host without the layer.
            is_causal: As in timm; only for a host without the layer.
            readout: Tokens that the frozen layer returns; None for all.
            take: Indices of the blocks whose outputs are kept.
            depth: Number of blocks to run; None for all.
            with_llm: Whether the frozen layer is applied.

        Returns:
            The tokens, and the outputs asked for in the order of the blocks.
        """
        if self.llm is not None and (attn_mask is not None or is_causal):
            raise ValueError(
                "FrozenLLMViT takes no attn_mask or is_causal: its frozen layer attends to all tokens. "
                "Build the host alone (llm='none') to use them."
            )
        x = self.patch_embed(x)
        x = self._pos_embed(x)
        x = self.patch_drop(x)
        x = self.norm_pre(x)
        if with_llm:
            x = self._apply_llm(x, 0)
        outputs = []
        for index, block in enumerate(self.blocks):
            if index == depth:
                break
            if attn_mask is not None or is_causal:
                x = block(x, attn_mask=attn_mask, is_causal=is_causal)
            elif self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x)
            else:
                x = block(x)
            if with_llm:
                x = self._apply_llm(x, index + 1, readout)
            if index in take:
                outputs.append(x)
        return x, outputs

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """All tokens after the final norm, ``(B, N, embed_dim)``."""
        return self.norm(self._encode(x, attn_mask, is_causal)[0])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Class scores, ``(B, num_classes)``.

        Where the head reads the class token alone, the frozen layer computes that token alone; the result is that of
        ``forward_head(forward_features(x))`` up to rounding, at a fraction of the work.
        """
        readout = slice(0, 1) if self.reads_class_token else None
        x, _ = self._encode(x, attn_mask, is_causal, readout=readout)
        return self.forward_head(self.norm(x))

    @property
    def reads_class_token(self) -> bool:
        """Whether nothing but the class token's output of the frozen layer reaches the head."""
        return (
            self.llm is not None
            and self.llm_index == len(self.blocks)
            and self.global_pool == "token"
            and self.attn_pool is None
        )

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        output_dict: bool = False,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Any:
        """Outputs of chosen blocks; arguments and return value are those of timm's method.

        The output of the block before the frozen layer is taken after the layer.

        Raises:
            ValueError: ``output_fmt`` is neither ``"NCHW"`` nor ``"NLC"``.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt must be NCHW or NLC, not {output_fmt!r}.")
        height, width = x.shape[-2:]
        wanted, last = feature_take_indices(len(self.blocks), indices)
        tokens, taken = self._encode(x, attn_mask, is_causal, take=wanted, depth=last + 1 if stop_early else None)
        if norm:
            taken = [self.norm(y) for y in taken]
        prefixes = [y[:, : self.num_prefix_tokens] for y in taken]
        taken = [y[:, self.num_prefix_tokens :] for y in taken]
        if output_fmt == "NCHW":
            grid = self.patch_embed.dynamic_feat_size((height, width))
            taken = [y.transpose(1, 2).unflatten(2, tuple(grid)).contiguous() for y in taken]
        with_prefixes = return_prefix_tokens and self.num_prefix_tokens > 0
        if output_dict:
            result: dict[str, Any] = {"image_intermediates": taken}
            if with_prefixes:
                result["image_intermediates_prefix"] = prefixes
            if not intermediates_only:
                result["image_features"] = self.norm(tokens)
            return result
        intermediates: Sequence[Any] = list(zip(taken, prefixes, strict=True)) if with_prefixes else taken
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As in timm; the frozen layer goes with the block that it follows."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if self.llm_index > len(self.blocks):
            self.llm, self.llm_index = None, len(self.blocks)
        return taken

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As in timm, for the frozen layer as well."""
        super().set_grad_checkpointing(enable)
        if hasattr(self.llm, "checkpoint_activations"):
            self.llm.checkpoint_activations = enable


def _resolve_position(position: str | int, depth: int) -> int:
    """Number of host blocks before the frozen layer."""
    named = {"tail": depth, "middle": depth // 2, "head": 0}
    if isinstance(position, str) and position in named:
        return named[position]
    if isinstance(position, bool) or not isinstance(position, int) or not 0 <= position <= depth:
        raise ValueError(f"llm_position must be tail, middle, head or a number from 0 to {depth}, not {position!r}.")
    return position


def _build_layer(dim: int, llm: LLM) -> nn.Module | None:
    if isinstance(llm, LLMBlock):
        return FrozenLLMLayer(dim, llm, adapter_init="trunc_normal")
    if isinstance(llm, nn.Module):
        return llm
    return build_llm_layer(dim, llm, adapter_init="trunc_normal")


def _create(variant: str, pretrained: bool, model_args: Mapping[str, Any], kwargs: dict[str, Any]) -> FrozenLLMViT:
    if "llm" not in kwargs:  # timm drops arguments that are None, so None cannot mean "the host alone" here
        raise ValueError(
            f"{variant} needs llm=...: 'bundled', a local path or hub repository of a language model, the settings of "
            "the llm config group, or 'none' for the host alone."
        )
    return build_model_with_cfg(
        FrozenLLMViT,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"},
        **{**model_args, **kwargs},
    )


default_cfgs = generate_default_cfgs(
    {
        # Resize to 256, centre crop of 224, bicubic, ImageNet statistics: paper 3.1 and the official datasets.py.
        f"vit_{size}_patch16_224_frozenllm.untrained": {
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for size in ("tiny", "small", "base")
    }
)


@register_model
def vit_tiny_patch16_224_frozenllm(pretrained: bool = False, **kwargs: Any) -> FrozenLLMViT:
    """ViT-T/16 (192 wide, 3 heads, 12 blocks) with a frozen layer."""
    return _create("vit_tiny_patch16_224_frozenllm", pretrained, {"embed_dim": 192, "num_heads": 3}, kwargs)


@register_model
def vit_small_patch16_224_frozenllm(pretrained: bool = False, **kwargs: Any) -> FrozenLLMViT:
    """ViT-S/16 (384 wide, 6 heads, 12 blocks) with a frozen layer."""
    return _create("vit_small_patch16_224_frozenllm", pretrained, {"embed_dim": 384, "num_heads": 6}, kwargs)


@register_model
def vit_base_patch16_224_frozenllm(pretrained: bool = False, **kwargs: Any) -> FrozenLLMViT:
    """ViT-B/16 (768 wide, 12 heads, 12 blocks) with a frozen layer."""
    return _create("vit_base_patch16_224_frozenllm", pretrained, {"embed_dim": 768, "num_heads": 12}, kwargs)
