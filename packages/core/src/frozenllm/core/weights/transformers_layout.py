"""Blocks from a model in transformers' layout: a ``config.json``, and tensor files with the family's own names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from frozenllm.core.families import find_language_model
from frozenllm.core.family import Family
from frozenllm.core.spec import BlockSpec
from frozenllm.core.weights.sources import BlockSource, LazyTensor, LazyTensors, TensorFiles, check_info


class TransformersModel(BlockSource):
    """A model whose family the table knows.

    Args:
        source: What the record will name.
        config: The parsed ``config.json``.
        files: Where the tensors are.
        revision: Resolved revision of a hub repository, or None.
        family: Its row of the table; None to find it by the config.

    Raises:
        ValueError: The family is unknown, or the config is not usable.
    """

    _described_by = "config.json"

    def __init__(
        self,
        source: str,
        config: Mapping[str, Any],
        files: TensorFiles,
        revision: str | None = None,
        family: Family | None = None,
    ) -> None:
        self.source, self.revision = source, revision
        self.files = files
        try:
            found = find_language_model(config) if family is None else (config, family)
            self.config: Mapping[str, Any] = found[0]
            self.family: Family = found[1]
            self.layers = tuple(range(self.family.layer_count(self.config)))
        except ValueError as error:
            raise ValueError(f"{files.where}: {error}") from error
        self.kind = f"transformers layout, family {self.family.name}"

    def spec(self, layer: int) -> BlockSpec:
        try:
            return self.family.spec(self.config, layer)
        except (ValueError, TypeError, ArithmeticError, AttributeError) as error:
            raise ValueError(f"{self.files.where}: {self._described_by} cannot be used: {error}") from error

    def tensors(self, layer: int) -> LazyTensors:
        prefix = self._root(layer) + self.family.layer.format(i=layer)
        spec = self.spec(layer)
        shapes = spec.tensor_shapes()
        stored = {name: prefix + self._stored_name(name) for name in shapes}
        self._check_names(layer, prefix, set(stored.values()))
        return LazyTensors({name: self._part(name, stored[name], spec, shapes) for name in shapes})

    def final_norm(self) -> LazyTensors:
        shapes = self.spec(self.layers[-1]).final_norm_shapes()
        root = self._root(self.layers[0])
        names = {name: f"{root}{self.family.final_norm}.{name.split('.')[-1]}" for name in shapes}
        self._require(list(names.values()), "the final norm")
        parts = {}
        for name, stored in names.items():
            info = self.files.info(stored)
            check_info(info, shapes[name], self._described_by)
            read = self._reader(stored)
            parts[name] = LazyTensor(info.file, stored, shapes[name], info.dtype, read, info.quantization)
        return LazyTensors(parts)

    def _stored_name(self, name: str) -> str:
        stem, kind = name.rsplit(".", 1)
        return f"{self.family.tensors[stem]}.{kind}"

    def _root(self, layer: int) -> str:
        inside = self.family.layer.format(i=layer)
        for root in self.family.roots:
            if any(name.startswith(root + inside) for name in self.files.names()):
                return root
        wanted = " or ".join(f"{root}{inside}*" for root in self.family.roots)
        raise ValueError(f"{self.files.where}: layer {layer} is missing: no tensor is named {wanted}.")

    def _check_names(self, layer: int, prefix: str, wanted: set[str]) -> None:
        self._require(sorted(wanted), f"layer {layer}")
        known = wanted | {prefix + name for name in self.family.ignored}
        extra = sorted(name for name in self.files.names() if name.startswith(prefix) and name not in known)
        if extra:  # leaving one out would give a block that computes something else
            raise ValueError(
                f"{self.files.where}: layer {layer} also holds {', '.join(extra[:3])}, which the family "
                f"{self.family.name} does not have: {self._described_by} does not describe these weights."
            )

    def _require(self, names: list[str], what: str) -> None:
        present = self.files.names()
        missing = [name for name in names if name not in present]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(f"{self.files.where}: {what} is incomplete: no tensor {', '.join(missing[:3])}{more}.")

    def _part(self, name: str, stored: str, spec: BlockSpec, shapes: Mapping[str, tuple[int, ...]]) -> LazyTensor:
        stem, kind = name.rsplit(".", 1)
        inside = self.family.tensors
        sharing = [f"{other}.{kind}" for other in inside if inside[other] == inside[stem]]
        shape = shapes[name]
        rows = [shapes[other][0] for other in sharing]
        transposed = self.family.transposed and len(shape) == 2
        whole = (sum(rows), *shape[1:])
        info = self.files.info(stored)
        check_info(info, whole[::-1] if transposed else whole, self._described_by)
        index, interleaved = sharing.index(name), self.family.interleaved

        def read() -> Tensor:
            tensor = self.files.read(stored)
            if transposed:
                tensor = tensor.t()
            if len(sharing) == 1:
                return tensor
            if interleaved:
                heads = tensor.unflatten(0, (-1, len(sharing), spec.head_dim))
                return heads[:, index].flatten(0, 1)
            return tensor.narrow(0, sum(rows[:index]), rows[index])

        return LazyTensor(info.file, stored, shape, info.dtype, read, info.quantization)

    def _reader(self, stored: str) -> Any:
        return lambda: self.files.read(stored)
