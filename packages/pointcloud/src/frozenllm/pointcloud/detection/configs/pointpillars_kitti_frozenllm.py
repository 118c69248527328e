# PointPillars on KITTI with a frozen layer over the cells of the stride-8 map. Beyond the paper (no detectors there).
_base_ = "./pointpillars_kitti.py"

model = dict(
    backbone=dict(_delete_=True, type="OccupancyBackbone", backbone=_base_.model.backbone),
    neck=dict(
        _delete_=True,
        type="FrozenLLMNeck",
        dim=256,  # channels of the coarsest map: the last of out_channels in mmdet3d's pointpillars_hv_secfpn_kitti.py
        llm=dict(source="huggyllama/llama-7b", layers=[-1]),  # the paper's model and layer (31)
        level=-1,  # chosen: 62 x 54 cells at stride 8; those at strides 4 and 2 would be 13 and 54 thousand tokens
        residual=False,  # paper, section 3.1
        empty="occupancy",  # chosen: cells without points are no tokens
        neck=_base_.model.neck,
    ),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # Chosen: the ratio of the paper's rates for point clouds (5e-5 against 5e-4), since the cycle goes up to
            # 1e-2; no decay as in the official point cloud code.
            "adapter_in": dict(lr_mult=0.1, decay_mult=0.0),
            "adapter_out": dict(lr_mult=0.1, decay_mult=0.0),
        }
    )
)
