"""Where block weights come from: transformers folders, Meta checkpoints, block files, and the bundled model."""

from frozenllm.core.weights.contents import BlockContents
from frozenllm.core.weights.load import load_block, parse_dtype, read_block, read_specs, reload_blocks, save_block
from frozenllm.core.weights.resolve import open_source

__all__ = [
    "BlockContents",
    "load_block",
    "open_source",
    "parse_dtype",
    "read_block",
    "read_specs",
    "reload_blocks",
    "save_block",
]
