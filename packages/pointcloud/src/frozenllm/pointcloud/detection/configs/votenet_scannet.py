# VoteNet on ScanNet V2 as mmdet3d trains it: the host alone.
_base_ = ["mmdet3d::votenet/votenet_8xb8_scannet-3d.py", "./_base_/runtime.py"]

default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2))  # mmdet3d: the last one only
