"""What readers of the official release's checkpoints share: the host's tensors, its heads, and the frozen layer.

Such a file holds a whole model: the host under names of its own, the block as ``llama.*``, and the adapters as
``llama_dim_mapper{1,2}``. A domain knows the host; the rest is the same for all.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from frozenllm.core.layer import AdapterInit, FrozenLLMLayer
from frozenllm.core.weights.load import load_block
from frozenllm.core.weights.official import PREFIX, OfficialFile

ADAPTERS = {"llama_dim_mapper1.weight": "llm.adapter_in.weight", "llama_dim_mapper2.weight": "llm.adapter_out.weight"}
RECORD = "llm.block._extra_state"
"""What a model with such a layer has in its state dict and the file has not."""
_HEAD_WIDTH = 64  # of the attention of all hosts of the paper


@dataclass
class OfficialModel:
    """The tensors of such a file.

    Attributes:
        path: The file.
        kind: What it should be, for errors: "a video model".
        state: Host and adapters; the adapters under the names that they have behind ``llm.`` in a host here.
        block_names: Stored names of the block; empty where the file has none.
    """

    path: Path
    kind: str
    state: dict[str, Tensor]
    block_names: frozenset[str]

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a tensor that the host must have.

        Raises:
            ValueError: It is missing, or has another number of dimensions.
        """
        if name not in self.state:
            raise ValueError(f"{self.path}: is not {self.kind} of the official release: {name} is missing.")
        shape = tuple(self.state[name].shape)
        if len(shape) != ndim:
            raise ValueError(f"{self.path}: {name} has the shape {shape}, which should be {ndim}-dimensional.")
        return shape

    def depth(self, pattern: str = r"blocks\.(\d+)\.") -> int:
        """Number of the host's blocks."""
        return len({match[1] for name in self.state if (match := re.match(pattern, name))})

    def heads(self, width: int, num_heads: int | None) -> int:
        """The host's attention heads, which no tensor tells.

        Args:
            width: Of the host.
            num_heads: None for heads 64 wide.

        Raises:
            ValueError: The width cannot be shared out so.
        """
        if num_heads is None:
            if width % _HEAD_WIDTH:
                raise ValueError(f"{self.path}: a host {width} wide has no heads of {_HEAD_WIDTH}; give num_heads.")
            num_heads = width // _HEAD_WIDTH
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"{self.path}: a host {width} wide cannot have {num_heads} heads.")
        return num_heads

    def layer(self, width: int, llm_heads: int, adapter_init: AdapterInit = "default") -> FrozenLLMLayer | None:
        """The frozen layer, its adapters yet to be loaded; None where the file has neither block nor adapters.

        The official norm after the block has gain 1; a file in which it has not is honoured.

        Args:
            width: Of the host.
            llm_heads: Attention heads of the block.
            adapter_init: See `FrozenLLMLayer`; it is part of what a model says about itself.

        Raises:
            ValueError: Block or adapters are missing, or the file holds other tensors beside them.
        """
        if not self.block_names and not any(name in self.state for name in ADAPTERS.values()):
            return None
        beside = (n for n in self.block_names if not n.startswith(f"{PREFIX}layers.") and n != f"{PREFIX}norm.weight")
        other = sorted(name for name in beside if "rope" not in name)
        if other:
            raise ValueError(f"{self.path}: also holds {', '.join(other[:3])}, which the official model does not have.")
        absent = [theirs for theirs, ours in ADAPTERS.items() if ours not in self.state]
        if absent:
            raise ValueError(f"{self.path}: holds a language-model block, but no {' and no '.join(absent)}.")
        block = load_block(self.path, num_heads=llm_heads)
        unit = all(bool((gain == 1).all()) for gain in block.final_norm_tensors().values())
        return FrozenLLMLayer(width, block, output_norm="unit" if unit else "pretrained", adapter_init=adapter_init)


def read_official(path: str | os.PathLike[str], kind: str) -> OfficialModel:
    """Read such a file, without running anything in it.

    Args:
        path: The ``.pth`` file.
        kind: See `OfficialModel`.

    Raises:
        ValueError: See `OfficialFile`.
    """
    path = Path(path).expanduser()
    stored = OfficialFile(path).tensors
    block_names = frozenset(name for name in stored if name.startswith(PREFIX))
    state = {ADAPTERS.get(name, name): tensor for name, tensor in stored.items() if name not in block_names}
    return OfficialModel(path, kind, state, block_names)
