"""Frozen blocks of pretrained language models as layers of any encoder."""

from frozenllm.core.ablations import MLPLayer, random_block
from frozenllm.core.block import LLMBlock, ignore_blocks_in_ddp, llm_blocks
from frozenllm.core.build import build_llm_layer
from frozenllm.core.layer import FrozenLLMLayer
from frozenllm.core.record import BlockRecord
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights import load_block, reload_blocks, save_block

__all__ = [
    "BlockRecord",
    "BlockSpec",
    "FrozenLLMLayer",
    "LLMBlock",
    "MLPLayer",
    "build_llm_layer",
    "ignore_blocks_in_ddp",
    "llm_blocks",
    "load_block",
    "random_block",
    "reload_blocks",
    "save_block",
]
