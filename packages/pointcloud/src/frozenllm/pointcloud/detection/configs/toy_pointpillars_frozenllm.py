# The small PointPillars with the bundled block over the cells of its stride-8 map.
_base_ = "./toy_pointpillars.py"

model = dict(
    backbone=dict(_delete_=True, type="OccupancyBackbone", backbone=_base_.model.backbone),
    neck=dict(
        _delete_=True,
        type="FrozenLLMNeck",
        dim=64,
        llm=dict(source="bundled"),
        residual=False,
        empty="occupancy",
        neck=_base_.model.neck,
    ),
)
