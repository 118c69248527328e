# PointPillars on KITTI, three classes, as mmdet3d trains it: the host alone.
_base_ = ["mmdet3d::pointpillars/pointpillars_hv_secfpn_8xb6-160e_kitti-3d-3class.py", "./_base_/runtime.py"]

default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2))  # mmdet3d: the last one only
