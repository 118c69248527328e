# A small VoteNet on the toy rooms: 8 iterations an epoch, half a minute on a CPU. All numbers are chosen for that.
_base_ = "./votenet_scannet.py"

toy_data = "scannet"  # the training tool writes it where it is missing
data_root = "data/toy_scannet/"

train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[4]["num_points"] = 1024  # PointSample
test_pipeline[2]["transforms"][2]["num_points"] = 1024
metainfo = dict(classes=("cabinet", "bed", "chair", "sofa"))  # what stands in the toy rooms
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    dataset=dict(times=1, dataset=dict(data_root=data_root, pipeline=train_pipeline, metainfo=metainfo)),
)
val_dataloader = dict(num_workers=0, dataset=dict(data_root=data_root, pipeline=test_pipeline, metainfo=metainfo))
test_dataloader = val_dataloader

model = dict(
    backbone=dict(
        num_points=(256, 128, 64, 32),
        radius=(0.3, 0.5, 0.9, 1.4),
        num_samples=(16, 16, 8, 8),
        sa_channels=((16, 16, 32), (32, 32, 64), (32, 32, 64), (32, 32, 64)),
        fp_channels=((64, 64), (64, 64)),
    ),
    bbox_head=dict(
        num_classes=4,
        bbox_coder=dict(
            num_sizes=4, mean_sizes=[[0.65, 0.65, 1.2], [1.5, 1.5, 0.5], [0.5, 0.5, 0.85], [1.15, 1.15, 0.8]]
        ),
        vote_module_cfg=dict(in_channels=64, conv_channels=(64, 64)),
        vote_aggregation_cfg=dict(num_point=32, num_sample=8, mlp_channels=[64, 32, 32, 32]),
        pred_layer_cfg=dict(in_channels=32, shared_conv_channels=(32, 32)),
    ),
)

optim_wrapper = dict(optimizer=dict(lr=0.008))
param_scheduler = [dict(type="CosineAnnealingLR", T_max=30, by_epoch=True, convert_to_iter_based=True)]
train_cfg = dict(max_epochs=30, val_interval=30)
default_hooks = dict(logger=dict(interval=8))
