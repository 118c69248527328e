# A small PointPillars on the toy street: 8 iterations an epoch, a minute on a CPU. All numbers are chosen for that.
_base_ = "./pointpillars_kitti.py"

toy_data = "kitti"  # the training tool writes it where it is missing
data_root = "data/toy_kitti/"
point_cloud_range = [0, -10.24, -3, 20.48, 10.24, 1]  # 128 x 128 pillars of the host's size

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2]["db_sampler"].update(
    data_root=data_root,
    info_path=data_root + "kitti_dbinfos_train.pkl",
    sample_groups=dict(Car=3, Pedestrian=2, Cyclist=2),
)
for step in (*train_pipeline, *test_pipeline[1]["transforms"]):
    if "point_cloud_range" in step:
        step["point_cloud_range"] = point_cloud_range
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(times=1, dataset=dict(data_root=data_root, pipeline=train_pipeline)),
)
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "kitti_infos_val.pkl")
test_evaluator = val_evaluator

model = dict(
    data_preprocessor=dict(
        voxel_layer=dict(max_num_points=16, point_cloud_range=point_cloud_range, max_voxels=(2000, 2000))
    ),
    voxel_encoder=dict(feat_channels=[16], point_cloud_range=point_cloud_range),
    middle_encoder=dict(in_channels=16, output_shape=[128, 128]),
    backbone=dict(in_channels=16, layer_nums=[1, 1, 1], out_channels=[16, 32, 64]),
    neck=dict(in_channels=[16, 32, 64], out_channels=[32, 32, 32]),
    bbox_head=dict(
        in_channels=96,
        feat_channels=96,
        anchor_generator=dict(
            ranges=[
                [0, -10.24, -0.6, 20.48, 10.24, -0.6],
                [0, -10.24, -0.6, 20.48, 10.24, -0.6],
                [0, -10.24, -1.78, 20.48, 10.24, -1.78],
            ]
        ),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.003))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=30, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30, val_interval=30)
default_hooks = dict(logger=dict(interval=8))
