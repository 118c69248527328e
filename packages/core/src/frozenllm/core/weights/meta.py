"""Blocks from Meta's own checkpoints: ``consolidated.*.pth`` with ``params.json``, one shard or several.

Model-parallel shards hold the rows of the query, key, value, gate and up projections and the columns of the output
and down projections; norms are in every shard. The two members of a rotary pair are neighbouring rows here, while
transformers keeps the first members of a head before the second ones, which is the canonical order.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenllm.core.family import MAX_LAYERS
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights.files import PickleFile, read_json
from frozenllm.core.weights.sources import BlockSource, LazyTensor, LazyTensors, check_info

TENSOR_NAMES = {
    "attn_norm.weight": "attention_norm.weight",
    "attn.q.weight": "attention.wq.weight",
    "attn.k.weight": "attention.wk.weight",
    "attn.v.weight": "attention.wv.weight",
    "attn.o.weight": "attention.wo.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "ffn.gate.weight": "feed_forward.w1.weight",
    "ffn.up.weight": "feed_forward.w3.weight",
    "ffn.down.weight": "feed_forward.w2.weight",
}
_JOINED_ALONG_COLUMNS = ("attn.o.weight", "ffn.down.weight")
_IGNORED = ("attention.inner_attention.rope.freqs",)


class MetaCheckpoint(BlockSource):
    """A folder with ``consolidated.*.pth`` and ``params.json``.

    Args:
        source: What the record will name.
        folder: The folder.

    Raises:
        ValueError: A file is missing or damaged.
    """

    def __init__(self, source: str, folder: Path) -> None:
        self.source = source
        self._where = folder
        paths = sorted(folder.glob("consolidated.*.pth"))
        numbers = [int(match[1]) for path in paths if (match := re.fullmatch(r"consolidated\.(\d+)\.pth", path.name))]
        if not numbers or numbers != list(range(len(paths))):
            raise ValueError(
                f"{folder}: expected consolidated.00.pth and so on without gaps, found "
                f"{', '.join(path.name for path in paths) or 'none'}."
            )
        self._params = read_json(folder / "params.json")
        self.layers = tuple(range(self._integer("n_layers", MAX_LAYERS)))
        self._shards = [PickleFile(path) for path in paths]
        self.kind = f"Meta checkpoint, {len(paths)} shard(s)"

    def spec(self, layer: int) -> BlockSpec:
        width, heads = self._integer("dim"), self._integer("n_heads")
        gate = f"layers.{layer}.{TENSOR_NAMES['ffn.gate.weight']}"
        rows = self._shards[0].info(gate).shape[0]
        try:
            return BlockSpec(
                hidden_size=width,
                num_heads=heads,
                num_kv_heads=self._integer("n_kv_heads") if self._params.get("n_kv_heads") is not None else heads,
                head_dim=width // heads,
                intermediate_size=rows * len(self._shards),  # params.json only implies it, through a rounding rule
                norm_eps=float(self._params.get("norm_eps", 1e-5)),
                rotary_base=float(self._params.get("rope_theta", 10000.0)),
                rotary_scaling=self._rotary_scaling(),
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self._where / 'params.json'}: {error}") from error

    def tensors(self, layer: int) -> LazyTensors:
        prefix = f"layers.{layer}."
        for shard in self._shards:
            known = {prefix + name for name in (*TENSOR_NAMES.values(), *_IGNORED)}
            extra = sorted(name for name in shard.names() if name.startswith(prefix) and name not in known)
            if extra:
                raise ValueError(
                    f"{shard.where}: layer {layer} also holds {', '.join(extra[:3])}: not a plain LLaMA checkpoint."
                )
        spec = self.spec(layer)
        return LazyTensors(
            {
                name: self._part(name, prefix + TENSOR_NAMES[name], shape, spec)
                for name, shape in spec.tensor_shapes().items()
            }
        )

    def final_norm(self) -> LazyTensors:
        spec = self.spec(self.layers[-1])
        return LazyTensors(
            {name: self._part(name, "norm.weight", shape, spec) for name, shape in spec.final_norm_shapes().items()}
        )

    def _part(self, name: str, stored: str, shape: tuple[int, ...], spec: BlockSpec) -> LazyTensor:
        shards = self._shards if len(shape) == 2 else self._shards[:1]
        along = 1 if name in _JOINED_ALONG_COLUMNS else 0
        infos = [shard.info(stored) for shard in shards]
        for info in infos:
            share = list(shape)
            share[along] = shape[along] // len(shards)
            check_info(info, tuple(share), f"params.json with {len(self._shards)} shard(s)")

        def read() -> Tensor:
            pieces = [shard.read(stored) for shard in shards]
            tensor = torch.cat(pieces, dim=along) if len(pieces) > 1 else pieces[0]
            heads = {"attn.q.weight": spec.num_heads, "attn.k.weight": spec.num_kv_heads}.get(name)
            return tensor if heads is None else pairs_to_halves(tensor, heads)

        file = infos[0].file if len(infos) == 1 else f"{self._where}/consolidated.*.pth"
        return LazyTensor(file, stored, shape, infos[0].dtype, read)

    def _rotary_scaling(self) -> dict[str, Any] | None:
        """LLaMA 3.1's stretched rotary angles; the constants are those of Meta's code, not in ``params.json``."""
        if not self._params.get("use_scaled_rope"):
            return None
        return {
            "rope_type": "llama3",
            "factor": float(self._params.get("rope_scaling_factor", 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": float(self._params.get("rope_high_freq_factor", 4.0)),
            "original_max_position_embeddings": 8192,
        }

    def _integer(self, key: str, most: int = 2**31) -> int:
        value = self._params.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise ValueError(f'{self._where / "params.json"}: "{key}" must be a positive whole number, not {value!r}.')
        return value


def pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key projection from neighbouring rotary pairs to two halves per head.

    Args:
        weight: (heads * head_dim, in_features).
        heads: Number of heads.

    Returns:
        A new tensor of the same shape, in the order of transformers.
    """
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
