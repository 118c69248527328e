"""Where somebody stands and looks: positions and quaternions, in the frames of SQA3D's code.

Three facts that SQA3D's papers do not say:

- The annotations' positions are in the scan's own axes, **before** ScanNet's axis alignment, and counted from the
  middle of the bounding box of its vertices. SQA3D's reader (``ScanQA/lib/sepdataset.py``) adds that middle and then
  applies the alignment to the position, and its rotation to the quaternion; `to_aligned` does the same.
- Quaternions are x, y, z, w (``utils/visualize_data.py``, ``assets/localization.md``), scipy's order.
- An unturned person looks along **-x**: the arrow that ``utils/visualize_data.py`` draws points there. z is up, so that
  the person's left is -y.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from frozenllm.vqa.scenes.extra import require

if TYPE_CHECKING:
    from scipy.spatial.transform import Rotation

FORWARD, LEFT, UP = (-1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0)
"""Of an unturned person."""
_HALF_TURN = 1e-3  # |w| below which a quaternion is taken for a half turn, whose sign then goes by z


def rotation(quaternion: NDArray[np.floating]) -> Rotation:
    """scipy's rotation of a quaternion x, y, z, w."""
    return require("scipy.spatial.transform").Rotation.from_quat(quaternion)


def quaternion_of(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """The quaternion x, y, z, w of a rotation matrix (3, 3).

    Of the two that mean the same, the one with w > 0, or with z > 0 for half turns: a model that regresses quaternions
    must not find both among its targets. (scipy's own choice, which SQA3D takes, jumps at a quarter turn.)
    """
    quaternion = require("scipy.spatial.transform").Rotation.from_matrix(matrix).as_quat()
    w = quaternion[3]
    negative = quaternion[2] < 0 if abs(w) < _HALF_TURN else w < 0
    return -quaternion if negative else quaternion


def pose_of(position: NDArray[np.floating], matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """A pose (7,): position and quaternion."""
    return np.concatenate([position, quaternion_of(matrix)])


def to_aligned(
    pose: NDArray[np.floating], centre: NDArray[np.floating], align: NDArray[np.floating]
) -> NDArray[np.float64]:
    """An annotation's pose among the aligned vertices.

    Args:
        pose: (7,), as annotated.
        centre: (3,), middle of the bounding box of the scan's vertices before alignment.
        align: (4, 4), ScanNet's ``axisAlignment``.

    Returns:
        (7,): position in metres and quaternion.
    """
    pose, align = np.asarray(pose, dtype=np.float64), np.asarray(align, dtype=np.float64)
    position = align[:3, :3] @ (pose[:3] + centre) + align[:3, 3]
    return pose_of(position, align[:3, :3] @ rotation(pose[3:]).as_matrix())


def from_aligned(
    pose: NDArray[np.floating], centre: NDArray[np.floating], align: NDArray[np.floating]
) -> NDArray[np.float64]:
    """The inverse of `to_aligned`: a pose as SQA3D annotates it."""
    pose, align = np.asarray(pose, dtype=np.float64), np.asarray(align, dtype=np.float64)
    position = align[:3, :3].T @ (pose[:3] - align[:3, 3]) - centre
    return pose_of(position, align[:3, :3].T @ rotation(pose[3:]).as_matrix())


def heading(pose: NDArray[np.floating]) -> NDArray[np.float64]:
    """The direction (3,) in which a person looks."""
    return rotation(np.asarray(pose)[3:]).apply(FORWARD)


def own_frame(points: NDArray[np.floating], pose: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points as the person sees them.

    Args:
        points: (..., 3), in the frame of the pose.
        pose: (7,).

    Returns:
        (..., 3): metres ahead, to the left, and above.
    """
    pose = np.asarray(pose, dtype=np.float64)
    axes = rotation(pose[3:]).apply(np.array([FORWARD, LEFT, UP]))
    return (np.asarray(points, dtype=np.float64) - pose[:3]) @ axes.T
