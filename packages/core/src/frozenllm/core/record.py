"""Where a block came from, and the hash that proves it.

A checkpoint holds this record instead of the block's weights. It is one small ``uint8`` tensor of JSON: safetensors,
the hub mixin, EMA wrappers and mmengine all carry a tensor, and none of them a dictionary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from frozenllm.core.spec import BlockSpec

RECORD_VERSION = 1


@dataclass(frozen=True)
class BlockRecord:
    """Identity of the weights in an `LLMBlock`.

    Attributes:
        source: What `load_block` was given: a repository, a folder, a file, ``"bundled"``, ``"random:..."``.
        revision: Resolved revision of a hub repository, None elsewhere.
        layers: Indices of the layers in the language model, counted from 0.
        dtype: Data type in the source, such as ``"float16"``; the block may compute in another one.
        sha256: Hash of the weights as stored in the source (`hash_tensors`).
    """

    source: str
    revision: str | None
    layers: tuple[int, ...]
    dtype: str
    sha256: str

    def to_tensor(self) -> Tensor:
        """The record as a one-dimensional ``uint8`` tensor."""
        text = json.dumps({"version": RECORD_VERSION, **asdict(self)}, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).clone()

    @classmethod
    def from_tensor(cls, tensor: Tensor) -> BlockRecord:
        """Inverse of `to_tensor`.

        Raises:
            ValueError: The tensor holds something else.
        """
        try:
            fields = json.loads(bytes(tensor.detach().cpu().to(torch.uint8).tolist()).decode())
            if fields.pop("version") != RECORD_VERSION:
                raise ValueError("another version")
            return cls(**{**fields, "layers": tuple(fields["layers"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"The checkpoint's record of its language-model block cannot be read ({error})."
            ) from error

    def describe(self) -> str:
        """One phrase for messages."""
        revision = f"@{self.revision}" if self.revision else ""
        layers = ", ".join(str(i) for i in self.layers)
        return f"{self.source}{revision} layer(s) {layers} (sha256 {self.sha256[:12]})"


def hash_tensors(
    specs: Sequence[BlockSpec], layers: Sequence[Mapping[str, Tensor]], final_norm: Mapping[str, Tensor]
) -> str:
    """SHA-256 of a block's weights.

    Args:
        specs: One spec per layer; its `tensor_shapes` fix the order in which tensors are read.
        layers: Canonical name -> tensor for every layer, in the dtype that the source stores.
        final_norm: The model's norm after its last block, or empty.

    Returns:
        The hexadecimal digest. Names, dtypes and shapes are hashed too.
    """
    digest = hashlib.sha256()
    for index, (spec, tensors) in enumerate(zip(specs, layers, strict=True)):
        for name in spec.tensor_shapes():
            _update(digest, f"{index}.{name}", tensors[name])
    for name in sorted(final_norm):
        _update(digest, name, final_norm[name])
    return digest.hexdigest()


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}\n".encode())
    data = tensor.detach().to("cpu").contiguous().view(-1).view(torch.uint8)
    digest.update(data.numpy().data)
