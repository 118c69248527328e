# VoteNet on SUN RGB-D with a frozen layer over the seed tokens. Beyond the paper, which has no 3D detector.
_base_ = "./votenet_sunrgbd.py"

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
            # Chosen, see votenet_scannet_frozenllm.py.
            "adapter_in": dict(lr_mult=0.1, decay_mult=0.0),
            "adapter_out": dict(lr_mult=0.1, decay_mult=0.0),
        }
    )
)
