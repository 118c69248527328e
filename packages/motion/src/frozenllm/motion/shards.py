"""Files of preprocessed samples: agents, lanes, vectors of one sample after the other, with a checksum per sample."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from frozenllm.core.training import BrokenSample
from frozenllm.core.whole_files import whole_file
from frozenllm.motion.data.centring import Window, empty_sample

_RAGGED = {"agents": "agent", "agents_valid": "agent", "agent_type": "agent", "lane_points": "lane"}
_RAGGED |= {"lane_attributes": "lane", "vectors": "vector"}
_DTYPES = {"agents": np.float32, "agents_valid": np.bool_, "agent_type": np.uint8, "lane_points": np.int32}
_DTYPES |= {"lane_attributes": np.uint8, "vectors": np.float32}
_FIXED = ("future", "future_valid", "origin", "heading")


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


def pack(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample without its padding, as arrays and strings."""
    inputs, targets = sample["inputs"], sample["targets"]
    valid = inputs["lanes_valid"]
    return {
        "agents": inputs["agents"].numpy(),
        "agents_valid": inputs["agents_valid"].numpy(),
        "agent_type": inputs["agent_type"].numpy().astype(np.uint8),
        "lane_points": valid.sum(dim=1).numpy().astype(np.int32),
        "lane_attributes": inputs["lane_attributes"].numpy().astype(np.uint8),
        "vectors": inputs["lanes"][valid].numpy(),
        "future": targets["future"].numpy(),
        "future_valid": targets["valid"].numpy(),
        "origin": sample["origin"].numpy(),
        "heading": sample["heading"].numpy(),
        "scenario": sample["scenario"],
        "track": sample["track"],
    }


def write_shard(path: Path, entries: Sequence[dict[str, Any] | str], names: Sequence[str], window: Window) -> int:
    """Writes one shard, which appears whole or not at all.

    Args:
        path: The file.
        entries: What `pack` gives, or the sentence of a broken sample.
        names: One per entry.
        window: Of the samples.

    Returns:
        Bytes written.
    """
    packed = [
        pack(empty_sample(window, name)) if isinstance(entry, str) else entry
        for entry, name in zip(entries, names, strict=True)
    ]
    arrays = {key: np.concatenate([entry[key] for entry in packed]) for key in _RAGGED}
    arrays |= {key: np.stack([entry[key] for entry in packed]) for key in _FIXED}
    for kind, key in (("agent", "agents"), ("lane", "lane_points"), ("vector", "vectors")):
        arrays[f"{kind}_ends"] = np.cumsum([len(entry[key]) for entry in packed], dtype=np.int64)
    arrays["checksums"] = np.array([_checksum(entry) for entry in packed], dtype=np.int64)
    words = {
        "names": list(names),
        "scenarios": [entry["scenario"] for entry in packed],
        "tracks": [entry["track"] for entry in packed],
        "broken": {str(i): entry for i, entry in enumerate(entries) if isinstance(entry, str)},
    }
    data = save({key: np.ascontiguousarray(array) for key, array in arrays.items()}, {"words": json.dumps(words)})
    with whole_file(path) as scratch, open(scratch, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return len(data)


def _checksum(entry: Mapping[str, Any]) -> int:
    value = zlib.crc32(f"{entry['scenario']}\n{entry['track']}".encode())
    for key in (*_RAGGED, *_FIXED):
        value = zlib.crc32(np.ascontiguousarray(entry[key]), value)
    return value


class Shard:
    """One file, mapped into memory.

    Args:
        path: The file.

    Raises:
        BrokenSample: It is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file = safe_open(path, framework="np")
            self.words = json.loads(self.file.metadata()["words"])
            self.ends = {kind: self.file.get_tensor(f"{kind}_ends") for kind in ("agent", "lane", "vector")}
            self.checksums = self.file.get_tensor("checksums")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise BrokenSample(f"{path} cannot be read as a part of a cache ({error}).") from error

    def entry(self, row: int) -> dict[str, Any]:
        """What `pack` gave.

        Raises:
            BrokenSample: The sample was broken already, or its bytes have changed since.
        """
        if sentence := self.words["broken"].get(str(row)):
            raise BrokenSample(sentence)
        spans = {kind: slice(int(ends[row - 1]) if row else 0, int(ends[row])) for kind, ends in self.ends.items()}
        try:
            entry = {key: self._rows(key, spans[kind]) for key, kind in _RAGGED.items()}
            entry |= {key: self.file.get_slice(key)[row : row + 1][0] for key in _FIXED}
        except (SafetensorError, ValueError, IndexError) as error:
            raise BrokenSample(f"Sample {row} of {self.path} cannot be read ({error}).") from error
        entry |= {"scenario": self.words["scenarios"][row], "track": self.words["tracks"][row]}
        if _checksum(entry) != self.checksums[row]:
            raise BrokenSample(
                f"Sample {row} of {self.path} is damaged: its checksum differs; remove this file and preprocess again."
            )
        return entry

    def _rows(self, key: str, span: slice) -> np.ndarray:
        part = self.file.get_slice(key)
        if span.start < span.stop:
            return part[span]
        return np.zeros((0, *part.get_shape()[1:]), dtype=_DTYPES[key])  # safetensors refuses empty slices


def unpack(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The sample that `pack` was given."""
    counts = entry["lane_points"]
    valid = np.arange(max(int(counts.max(initial=1)), 1)) < counts[:, None]
    lanes = np.zeros((*valid.shape, entry["vectors"].shape[-1]), dtype=np.float32)
    lanes[valid] = entry["vectors"]
    return {
        "inputs": {
            "agents": _tensor(entry["agents"]),
            "agents_valid": _tensor(entry["agents_valid"]),
            "agent_type": _tensor(entry["agent_type"]).long(),
            "lanes": _tensor(lanes),
            "lanes_valid": _tensor(valid),
            "lane_attributes": _tensor(entry["lane_attributes"]).float(),
        },
        "targets": {"future": _tensor(entry["future"]), "valid": _tensor(entry["future_valid"])},
        "scenario": entry["scenario"],
        "track": entry["track"],
        "origin": _tensor(entry["origin"]),
        "heading": _tensor(entry["heading"]),
    }


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy: what safetensors hands out may be read-only
