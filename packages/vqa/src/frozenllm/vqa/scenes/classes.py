"""The object classes of SQA3D's detector: NYU40's without wall, floor and ceiling, the rarer ones in one class."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CLASSES = (
    "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf", "picture", "counter", "desk", "curtain",
    "refrigerator", "shower curtain", "toilet", "sink", "bathtub", "others",
)  # fmt: skip
"""As in SQA3D's code (ScanRefer's): VoteNet's 18 classes on ScanNet, but that its last, the bin, is in ``others``."""

IGNORED = -1
"""Class of points on walls, floors and ceilings, and of those that are not annotated."""

_NAMED = (3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36)  # NYU40 ids of the first 17
_STRUCTURE = (1, 2, 22)  # wall, floor, ceiling
NYU40 = 40  # the largest id; 0 is "not annotated"

MEAN_SIZES = (
    (0.775, 0.949, 0.9654), (1.869, 1.8321, 1.1922), (0.6121, 0.6193, 0.7048), (1.4411, 1.6045, 0.8365),
    (1.0478, 1.2016, 0.6346), (0.561, 0.6085, 1.7195), (1.0789, 0.8203, 1.1692), (0.8417, 1.3505, 1.6899),
    (0.2305, 0.4764, 0.5657), (1.4548, 1.9712, 0.2864), (1.0786, 1.5371, 0.865), (1.4312, 0.7692, 1.6498),
    (0.6297, 0.7087, 1.3143), (0.4393, 0.4157, 1.7), (0.585, 0.5788, 0.7203), (0.5116, 0.5096, 0.3129),
    (1.1732, 1.0599, 0.5181), (0.4329, 0.5193, 0.4844),
)  # fmt: skip
"""Mean width, depth and height of a class's boxes in metres: SQA3D's ``scannet_reference_means.npz``, rounded."""


def _table() -> NDArray[np.int64]:
    table = np.full(NYU40 + 1, len(CLASSES) - 1)
    table[[0, *_STRUCTURE]] = IGNORED
    table[list(_NAMED)] = np.arange(len(_NAMED))
    return table


_CLASS_OF = _table()


def class_of(nyu40: NDArray[np.integer]) -> NDArray[np.int64]:
    """Classes of NYU40 ids; `IGNORED` for wall, floor, ceiling, 0 and ids that NYU40 does not have."""
    ids = np.asarray(nyu40).astype(np.int64)
    inside = (ids >= 0) & (ids <= NYU40)
    return np.where(inside, _CLASS_OF[np.where(inside, ids, 0)], IGNORED)
