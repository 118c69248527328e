"""A host without a frozen layer, made deeper or wider until a prediction takes as many operations as with it.

    python -m frozenllm.vision2d.matched recipe=imagenet_vit_small_llama

prints the sizes for a recipe's host and block; only the block's shape is read. ``conf/model/vit_small_*.yaml`` hold
those of ViT-S with LLaMA-7B's last block, and ``ablation=matched_host`` trains them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from frozenllm.core.flops import count_flops
from frozenllm.core.training import build_model, compose_config, errors_in_a_sentence
from frozenllm.core.training.cost import prediction_cost

_HEAD_WIDTH = 64  # of every vision transformer of DeiT's
_CLOSE = 0.05  # widths that keep the width of heads are taken where they come as close as this


@dataclass(frozen=True)
class HostSize:
    """A host's size and the operations of a prediction.

    Attributes:
        depth: Blocks.
        embed_dim: Width.
        num_heads: Heads.
        flops: Of one image.
    """

    depth: int
    embed_dim: int
    num_heads: int
    flops: int


@dataclass(frozen=True)
class Matched:
    """Hosts that cost as much as a host with a frozen layer.

    Attributes:
        target: Operations of the host with the layer, for one image.
        host: The host alone, as it is.
        deeper: With more blocks.
        wider: With wider blocks.
    """

    target: int
    host: HostSize
    deeper: HostSize
    wider: HostSize


def match_host(cfg: DictConfig, target: int) -> Matched:
    """Sizes of the host alone that come closest to a number of operations.

    Args:
        cfg: A composed config; its ``llm`` is left out.
        target: Operations for one image, such as `prediction_cost` gives for the host with the layer.
    """
    host = _size(cfg)
    deeper = _closest(lambda n: _resized(cfg, depth=n), host.depth, target)
    per_head = host.embed_dim // host.num_heads
    wider = _closest(lambda n: _resized(cfg, embed_dim=n * host.num_heads), per_head, target)
    if per_head == _HEAD_WIDTH:
        more = _closest(lambda n: _resized(cfg, embed_dim=n * per_head, num_heads=n), host.num_heads, target)
        wider = more if more != host and abs(more.flops / target - 1) < _CLOSE else wider
    return Matched(target, host, deeper, wider)


def target_flops(cfg: DictConfig) -> dict[str, int]:
    """Operations of a config's host with its layer for one image, with random weights in the block.

    Returns:
        ``shortcuts``, as computed here in eval mode; ``official``, as the official code computes it: every token
        through the block.
    """
    plain = _copy(cfg)
    if plain.llm.kind == "pretrained":
        plain.llm.kind = "random"  # the block's shape, not its weights
    plain.llm.dtype = None
    cost = prediction_cost(build_model(plain), _image(plain, "cpu"))
    return {"shortcuts": int(cost["flops"]), "official": int(cost["dense_flops"])}


def _closest(size: Callable[[int], HostSize], start: int, target: int) -> HostSize:
    """The size for a number from ``start`` on, with which operations grow, that comes closest to the target."""
    low = high = start
    while size(high).flops < target:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle).flops < target else (low, middle)
    return min((size(low), size(high)), key=lambda found: abs(found.flops - target))


def _resized(cfg: DictConfig, **size: int) -> HostSize:
    changed = _copy(cfg)
    with open_dict(changed):
        changed.model.update(size)
    return _size(changed)


def _size(cfg: DictConfig) -> HostSize:
    alone = _copy(cfg)
    alone.llm.kind = "none"
    with torch.device("meta"):
        model: Any = build_model(alone).eval()
        images = _image(alone, "meta")
    flops = count_flops(lambda: model(images))
    return HostSize(len(model.blocks), model.embed_dim, model.blocks[0].attn.num_heads, flops)


def _image(cfg: DictConfig, device: str) -> torch.Tensor:
    size = cfg.data.val.transform.input_size
    return torch.zeros(1, 3, size, size, device=device)


def _copy(cfg: DictConfig) -> DictConfig:
    copy = OmegaConf.create(OmegaConf.to_container(cfg))
    with open_dict(copy):
        copy.model.update(host=None, freeze_host=False)
    return copy


def main(argv: Sequence[str] | None = None) -> None:
    """The command line.

    Args:
        argv: Overrides; None for the process's arguments.
    """
    from frozenllm.vision2d.train import CONFIG

    with errors_in_a_sentence():
        cfg = compose_config(CONFIG, list(sys.argv[1:] if argv is None else argv))
        targets = target_flops(cfg)
    for way, target in targets.items():
        matched = match_host(cfg, target)
        print(f"host with the layer, {way}: {target / 1e9:.3g} GFLOPs an image")
        for name in ("host", "deeper", "wider"):
            size = asdict(getattr(matched, name))
            flops = size.pop("flops")
            sizes = " ".join(f"model.{key}={value}" for key, value in size.items())
            print(f"  {name:6s}  {flops / 1e9:8.3g} GFLOPs  {sizes}")


if __name__ == "__main__":
    main()
