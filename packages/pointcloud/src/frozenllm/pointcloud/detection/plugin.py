"""What a config imports: ``custom_imports = dict(imports=["frozenllm.pointcloud.detection.plugin"])``.

Registers `FrozenLLMNeck` and `OccupancyBackbone` in mmdet3d's registry and `SafeCheckpoints` in this project's. Where
there is no CUDA, it puts stand-ins in the place of mmcv's kernels.
"""

from __future__ import annotations

from frozenllm.pointcloud.detection.extra import require_mmdet3d

require_mmdet3d()

from mmdet3d.registry import MODELS  # noqa: E402

from frozenllm.pointcloud.detection import checkpoints, compat, cpu_ops  # noqa: E402, F401 - registers hooks
from frozenllm.pointcloud.detection.neck import FrozenLLMNeck  # noqa: E402
from frozenllm.pointcloud.detection.occupancy import OccupancyBackbone  # noqa: E402

# A second import (a reload, or under another name) finds them there.
MODELS.register_module(module=FrozenLLMNeck, force=True)
MODELS.register_module(module=OccupancyBackbone, force=True)
compat.install()
cpu_ops.install()
