# What every config of this package adds to mmdet3d's.
custom_imports = dict(imports=["frozenllm.pointcloud.detection.plugin"], allow_failed_imports=False)
custom_hooks = [
    dict(type="frozenllm.FrozenGuard"),  # a run that changed a byte of the frozen block fails
    dict(type="frozenllm.SafeCheckpoints"),  # resumable without unpickling code
]
randomness = dict(seed=0)  # chosen; mmdet3d draws one
