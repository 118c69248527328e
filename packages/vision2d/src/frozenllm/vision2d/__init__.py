"""Vision transformers with a frozen language-model block, on timm.

Importing this package registers ``vit_{tiny,small,base}_patch16_224_frozenllm`` in timm.
"""

from frozenllm.vision2d.model import FrozenLLMViT
from frozenllm.vision2d.official import load_host_checkpoint, load_official_checkpoint

__all__ = ["FrozenLLMViT", "load_host_checkpoint", "load_official_checkpoint"]
