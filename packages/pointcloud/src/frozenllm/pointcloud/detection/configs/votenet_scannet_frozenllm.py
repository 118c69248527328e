# VoteNet on ScanNet V2 with a frozen layer over the seed tokens. Beyond the paper, which has no 3D detector.
_base_ = "./votenet_scannet.py"

model = dict(
    neck=dict(
        type="FrozenLLMNeck",
        dim=256,  # channels of the seeds: the last of fp_channels in mmdet3d's votenet.py
        llm=dict(source="huggyllama/llama-7b", layers=[-1]),  # the paper's model and layer (31)
        residual=False,  # paper, section 3.1
    )
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # Chosen: the ratio of the paper's rates for point clouds (5e-5 against 5e-4), since VoteNet's 8e-3 is large
            # for matrices 4096 wide; no decay as in the official point cloud code.
            "adapter_in": dict(lr_mult=0.1, decay_mult=0.0),
            "adapter_out": dict(lr_mult=0.1, decay_mult=0.0),
        }
    )
)
